-- +goose Up
-- What is left of an address that was erased: a keyed hash of it, by which whoever has the key
-- and the address can prove that something was sent to it, and when.
create table erasure (
  id uuid primary key,
  hash bytea not null,
  actor text not null,
  time timestamptz not null,
  mails bigint not null,
  first_time timestamptz,      -- when the first of these mails was taken
  last_time timestamptz
);
create index erasure_hash on erasure (hash, time);

-- A row of the audit log that holds commitment is chained by that, which is a hash of its texts
-- under salt. When a text is erased its salt goes too, so that nobody can guess what it was,
-- and the chain holds on. erasure: the last erasure that changed the row; a later row vouches
-- for what it says since.
alter table audit add column salt bytea, add column commitment bytea, add column erasure uuid;

-- +goose StatementBegin
create or replace function audit_is_kept() returns trigger language plpgsql as $$ begin
  if tg_op = 'UPDATE' then
    if old.seq is null and new.seq is not null and new.id = old.id and new.time = old.time and new.actor = old.actor and new.action = old.action
      and new.team = old.team and new.target = old.target and new.reason = old.reason and new.detail::text is not distinct from old.detail::text then
      return new;
    end if;
    if old.seq is not null and new.seq = old.seq and new.hash = old.hash and new.id = old.id and new.time = old.time and new.salt is null
      and new.commitment is not distinct from old.commitment and new.erasure is not null and new.erasure is distinct from old.erasure
      and exists (select 1 from erasure where id = new.erasure) then
      return new;
    end if;
  end if;
  raise exception 'the audit log is append-only';
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
create or replace function audit_is_kept() returns trigger language plpgsql as $$ begin
  if tg_op = 'UPDATE' then
    if old.seq is null and new.seq is not null and new.id = old.id and new.time = old.time and new.actor = old.actor and new.action = old.action
      and new.team = old.team and new.target = old.target and new.reason = old.reason and new.detail::text is not distinct from old.detail::text then
      return new;
    end if;
  end if;
  raise exception 'the audit log is append-only';
end $$;
-- +goose StatementEnd
alter table audit drop column erasure, drop column commitment, drop column salt;
drop table erasure;
