-- +goose Up
-- A token by which a caller is known. Its secret is not kept, only the sum of it.
create table token (
  id text primary key,
  name text not null,
  hash bytea not null,           -- SHA-256 of the secret
  roles text not null,         -- JSON list of words, as the three below it
  teams text not null,
  kinds text not null,
  mail_servers text not null,
  system boolean not null,
  created_by text not null,
  create_time timestamptz not null,
  expire_time timestamptz not null,
  use_time timestamptz,                -- null = never used
  revoke_time timestamptz              -- null = not revoked
);
-- Callers are asked who they are. The first token sets it, and nothing takes it back.
alter table installation add column access_on boolean not null default false;
-- Whose a mail is; null = of a caller that nobody asked.
alter table mail add column caller text;
-- 1 = the replica asks callers who they are once access_on is set. Older programs leave it at 0.
alter table replica add column asks smallint not null default 0;

-- +goose Down
alter table replica drop column asks;
alter table mail drop column caller;
alter table installation drop column access_on;
drop table token;
