-- +goose Up
-- SQLite has no pages that statements could go round: it is empty.
create table damaged_page (
  page integer primary key,
  found_at integer not null,
  problem text not null
) strict;

-- +goose Down
drop table damaged_page;
