-- +goose Up
-- Under which domains a team's own mail servers may send; without a row under any.
create table sender_domain (
  team text primary key,
  domains text not null,       -- JSON list
  update_time integer not null
);

-- +goose Down
drop table sender_domain;
