-- +goose Up
-- Every change of a mail's status, for those who watch. xid: a reader takes what lies below the oldest transaction that still runs, so that nothing that
-- commits later can appear behind its back; two changes of one mail always have growing xids.
create table change (
  xid bigint not null default pg_current_xact_id()::text::bigint,
  seq bigint generated always as identity,
  mail_id uuid not null,
  status text not null,
  time timestamptz not null default now(),
  primary key (xid, seq)
);
-- Up to where changes were forgotten: a reader that has not come so far has missed something and is told.
create table change_forgotten (xid bigint not null, seq bigint not null);
insert into change_forgotten values (0, 0);

-- +goose Down
drop table change_forgotten;
drop table change;
