-- +goose Up
-- One row: what this database says of itself, so that a process which remembers it finds that it
-- was restored, copied or promoted without its last commits.
create table installation (
  one smallint primary key default 1 check (one = 1),
  id text not null default '',        -- the same in all copies; given by the first process that serves
  beat bigint not null default 0,     -- higher at each renewal of a lease and at each start
  nonce text not null default '',     -- SQLite: of the last start; its process keeps it in a file too
  system text not null default '',    -- PostgreSQL: cluster and database that it lies in
  timeline text not null default '',  -- PostgreSQL: of the server that it was last seen on
  back_at timestamptz,                -- when it was found to have gone back; null = never, or adopted
  back_why text not null default ''
);
insert into installation (one) values (1);

-- +goose Down
drop table installation;
