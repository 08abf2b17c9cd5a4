-- What tells a database that went back in time, on SQLite; lineage.go says how.

-- name: installation
-- one row
select id, beat, nonce, system, timeline, back_at, back_why from installation;

-- name: installation_lock
-- one row; the one writer is the lock
select id, beat, nonce, system, timeline, back_at, back_why from installation;

-- name: installation_write
-- one row
-- takes: id, beat, nonce, system, timeline, back_at, back_why
update installation set id = :id, beat = :beat, nonce = :nonce, system = :system, timeline = :timeline, back_at = :back_at, back_why = :back_why;

-- name: beat
-- one row
-- takes: timeline, id
update installation set beat = beat + 1, timeline = :timeline where id = :id
returning id, beat, nonce, system, timeline, back_at, back_why;

-- name: change_begin
-- one row
-- takes: generation
update change_forgotten set generation = :generation;

-- name: operations_halt
-- operation_running. Before the hold, as a piece locks its operation before its mails.
-- takes: now, error
update operation set state = 'stopped', request = '{}', error = :error, end_time = :now, update_time = :now where state = 'running';

-- name: brakes_off
-- all that they hold up is held
delete from operation_brake;

-- name: hold
-- a scan of due; as on PostgreSQL
-- takes: last_error
update due set status = 'held', resume_at = run_at, run_at = null, owner = null, data_at = null, claim = claim + 1000000,
  wish = null, wish_reason = null, begun = 0, possible_duplicate = 1, last_error = :last_error
where run_at is not null;

-- name: hold_parked
-- a scan of due
-- takes: last_error
update due set owner = null, data_at = null, claim = claim + 1000000, wish = null, wish_reason = null, begun = 0, possible_duplicate = 1
where run_at is null and last_error <> :last_error;
