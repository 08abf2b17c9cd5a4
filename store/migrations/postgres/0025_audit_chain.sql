-- +goose Up
-- Each row of the audit log is linked to the one before it: hash covers the row and the hash of
-- the row before. A row is inserted without seq and gets it in the same transaction. Rows of an
-- older version are linked afterwards, as they are found.
alter table audit add column seq bigint, add column hash bytea;
create unique index audit_seq on audit (seq);
create index audit_unlinked on audit (id) where seq is null;

-- +goose StatementBegin
create function audit_is_kept() returns trigger language plpgsql as $$ begin
  if tg_op = 'UPDATE' then
    if old.seq is null and new.seq is not null and new.id = old.id and new.time = old.time and new.actor = old.actor and new.action = old.action
      and new.team = old.team and new.target = old.target and new.reason = old.reason and new.detail::text is not distinct from old.detail::text then
      return new;
    end if;
  end if;
  raise exception 'the audit log is append-only';
end $$;
-- +goose StatementEnd
create trigger audit_kept before update or delete on audit for each row execute function audit_is_kept();
create trigger audit_kept_whole before truncate on audit for each statement execute function audit_is_kept();

-- +goose Down
drop trigger audit_kept_whole on audit;
drop trigger audit_kept on audit;
drop function audit_is_kept();
drop index audit_unlinked;
drop index audit_seq;
alter table audit drop column hash, drop column seq;
