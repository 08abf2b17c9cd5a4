-- +goose Up
-- Each row of the audit log is linked to the one before it: hash covers the row and the hash of
-- the row before. A row is inserted without seq and gets it in the same transaction. Rows of an
-- older version are linked afterwards, as they are found.
alter table audit add column seq integer;
alter table audit add column hash blob;
create unique index audit_seq on audit (seq);
create index audit_unlinked on audit (id) where seq is null;

-- +goose StatementBegin
create trigger audit_kept before update on audit
when not (old.seq is null and new.seq is not null and new.id = old.id and new.time = old.time and new.actor = old.actor and new.action = old.action
  and new.team = old.team and new.target = old.target and new.reason = old.reason and new.detail is old.detail)
begin select raise(abort, 'the audit log is append-only'); end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger audit_kept_whole before delete on audit
begin select raise(abort, 'the audit log is append-only'); end;
-- +goose StatementEnd

-- +goose Down
drop trigger audit_kept_whole;
drop trigger audit_kept;
drop index audit_unlinked;
drop index audit_seq;
alter table audit drop column hash;
alter table audit drop column seq;
