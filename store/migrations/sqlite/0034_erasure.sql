-- +goose Up
-- What is left of an address that was erased: a keyed hash of it, by which whoever has the key
-- and the address can prove that something was sent to it, and when.
create table erasure (
  id text primary key,
  hash blob not null,
  actor text not null,
  time integer not null,
  mails integer not null,
  first_time integer,          -- when the first of these mails was taken
  last_time integer
);
create index erasure_hash on erasure (hash, time);

-- A row of the audit log that holds commitment is chained by that, which is a hash of its texts
-- under salt. When a text is erased its salt goes too, so that nobody can guess what it was,
-- and the chain holds on. erasure: the last erasure that changed the row; a later row vouches
-- for what it says since.
alter table audit add column salt blob;
alter table audit add column commitment blob;
alter table audit add column erasure text;

drop trigger audit_kept;
-- +goose StatementBegin
create trigger audit_kept before update on audit
when not (old.seq is null and new.seq is not null and new.id = old.id and new.time = old.time and new.actor = old.actor and new.action = old.action
    and new.team = old.team and new.target = old.target and new.reason = old.reason and new.detail is old.detail)
  and not (old.seq is not null and new.seq = old.seq and new.hash = old.hash and new.id = old.id and new.time = old.time and new.salt is null
    and new.commitment is old.commitment and new.erasure is not null and new.erasure is not old.erasure
    and exists (select 1 from erasure where id = new.erasure))
begin select raise(abort, 'the audit log is append-only'); end;
-- +goose StatementEnd

-- +goose Down
drop trigger audit_kept;
-- +goose StatementBegin
create trigger audit_kept before update on audit
when not (old.seq is null and new.seq is not null and new.id = old.id and new.time = old.time and new.actor = old.actor and new.action = old.action
  and new.team = old.team and new.target = old.target and new.reason = old.reason and new.detail is old.detail)
begin select raise(abort, 'the audit log is append-only'); end;
-- +goose StatementEnd
alter table audit drop column erasure;
alter table audit drop column commitment;
alter table audit drop column salt;
drop table erasure;
