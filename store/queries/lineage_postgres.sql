-- What tells a database that went back in time, on PostgreSQL; lineage.go says how. None is
-- prepared: they run a few times a minute, or on a connection that nobody uses yet.

-- name: system
-- none; a dump that is restored gets another database, a new cluster another identifier
select (select system_identifier from pg_control_system())::text || '/' || (select oid from pg_database where datname = current_database())::text;

-- name: timeline
-- none; each promotion begins a new one
select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);

-- name: installation
-- one row
select id, beat, nonce, system, timeline, back_at, back_why from installation;

-- name: installation_lock
-- one row
select id, beat, nonce, system, timeline, back_at, back_why from installation for update;

-- name: installation_write
-- one row
-- takes: id, beat, nonce, system, timeline, back_at, back_why
update installation set id = :id, beat = :beat, nonce = :nonce, system = :system, timeline = :timeline, back_at = :back_at, back_why = :back_why;

-- name: beat
-- one row
-- takes: timeline, id
update installation set beat = beat + 1, timeline = :timeline where id = :id
returning id, beat, nonce, system, timeline, back_at, back_why;

-- name: replica_lives
-- a handful of rows
select exists (select 1 from replica where alive_until > now());

-- name: operations_halt
-- operation_running. Before the hold, as a piece locks its operation before its mails.
-- takes: now, error
update operation set state = 'stopped', request = '{}', error = :error, end_time = :now, update_time = :now where state = 'running';

-- name: brakes_off
-- all that they hold up is held
delete from operation_brake;

-- name: hold_lock
-- waits for writes under way, so that none of them and the hold wait for each other
lock table due in share row exclusive mode;

-- name: change_ahead
-- primary key: changes of another cluster that seem to come later than those of this one
select exists (select 1 from change where xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint);

-- name: change_empty
-- none
truncate change;

-- name: change_begin
-- one row; what was forgotten was of another generation
-- takes: generation
update change_forgotten set generation = :generation, xid = 0, seq = 0;

-- name: hold
-- a scan of due. Whatever was due may have left since; so may what waits for a person, who had
-- perhaps let it go. claim: a number given out in the time that was lost is not given out
-- again.
-- takes: last_error
with h as (
  update due set status = 'held', resume_at = run_at, run_at = null, owner = null, data_at = null, claim = claim + 1000000,
    wish = null, wish_reason = null, begun = false, possible_duplicate = true, last_error = :last_error
  where run_at is not null returning id
), o as (
  update due set owner = null, data_at = null, claim = claim + 1000000, wish = null, wish_reason = null, begun = false, possible_duplicate = true
  where run_at is null returning id
), ch as (
  insert into change (mail_id, status) select id, 'held' from h
)
select count(*) from h;

-- name: hold_replicas
-- a handful of rows: each that lives has to take a new lease, under an id that nobody had
update replica set alive_until = 'epoch';

-- name: hold_replica_ids
-- none
select setval(pg_get_serial_sequence('replica', 'id'), nextval(pg_get_serial_sequence('replica', 'id')) + 1000000);

-- name: lost
-- primary keys of due and archive: which of these writes are gone
-- takes: list
select count(*) from json_to_recordset(:list::json) as x(id uuid, c bigint, k text)
where not exists (select 1 from archive a where a.id = x.id) and (x.k = 'archive' or not exists (
  select 1 from due d where d.id = x.id and (d.claim > x.c or d.claim = x.c and (d.owner is null or x.k = 'mark' and d.data_at is not null))));
