-- +goose Up
-- Pages of the due-out journal that the database cannot read, as replicas met them last. They
-- are gone round. This table is for those who look: each replica finds out by itself.
create table damaged_page (
  page bigint primary key,
  found_at timestamptz not null,
  problem text not null
);

-- +goose Down
drop table damaged_page;
