-- +goose Up
-- What was taken of an allowance over all replicas. The key is a keyed hash: it tells nobody whose
-- allowance it is.
create table allowance (
  key blob primary key,
  used text not null,            -- JSON list of [slot, count]
  expire_time integer not null       -- when all of it is out of the allowance's period
);
create index allowance_expire on allowance (expire_time);

-- +goose Down
drop table allowance;
