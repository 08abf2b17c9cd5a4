-- +goose Up
-- Mails that the database cannot read or write, as replicas met them last. They are left out of
-- all work. This table is for those who look: each replica finds out by itself.
create table damage (
  mail_id uuid primary key,
  found_at timestamptz not null,
  problem text not null
);

-- +goose Down
drop table damage;
