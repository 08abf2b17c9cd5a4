-- +goose Up
-- A token by which a caller is known. Its secret is not kept, only the sum of it.
create table token (
  id text primary key,
  name text not null,
  hash blob not null,           -- SHA-256 of the secret
  roles text not null,         -- JSON list of words, as the three below it
  teams text not null,
  kinds text not null,
  mail_servers text not null,
  system integer not null,
  created_by text not null,
  create_time integer not null,
  expire_time integer not null,
  use_time integer,                -- null = never used
  revoke_time integer              -- null = not revoked
);
-- Callers are asked who they are. The first token sets it, and nothing takes it back.
alter table installation add column access_on integer not null default 0;
-- Whose a mail is; null = of a caller that nobody asked.
alter table mail add column caller text;
-- 1 = the replica asks callers who they are once access_on is set. Older programs leave it at 0.
alter table replica add column asks integer not null default 0;

-- +goose Down
alter table replica drop column asks;
alter table mail drop column caller;
alter table installation drop column access_on;
drop table token;
