-- What tells a database that went back in time, on SQLite; lineage.go says how.

-- name: installation
-- one row
select id, beat, nonce, system, timeline, back_at, back_why from installation;

-- name: installation_lock
-- one row; the one writer is the lock
select id, beat, nonce, system, timeline, back_at, back_why from installation;

-- name: installation_write
-- one row
update installation set id = ?, beat = ?, nonce = ?, system = ?, timeline = ?, back_at = ?, back_why = ?;

-- name: beat
-- one row
update installation set beat = beat + 1, timeline = ? where id = ?
returning id, beat, nonce, system, timeline, back_at, back_why;

-- name: change_begin
-- one row
update change_forgotten set generation = ?;

-- name: hold
-- a scan of due; as on PostgreSQL
update due set status = 'held', resume_at = run_at, run_at = null, owner = null, data_at = null, claim = claim + 1000000,
  wish = null, wish_reason = null, begun = 0, possible_duplicate = 1, last_error = ?
where run_at is not null;

-- name: hold_parked
-- a scan of due
update due set owner = null, data_at = null, claim = claim + 1000000, wish = null, wish_reason = null, begun = 0, possible_duplicate = 1
where run_at is null and last_error <> ?;

-- name: hold_audit
-- none
insert into audit (time, actor, action, team, target, reason) values (?, 'maildispatchd', 'HoldRestored', '', ?, ?);
