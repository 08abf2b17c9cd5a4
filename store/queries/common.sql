-- Statements that both databases take as they stand. Each names the index that serves it. In
-- brackets stands which connections run it outside of transactions: (read) the engine's reading
-- ones, (look) those for what people look at, (lease) the lease's own.

-- name: server_insert
-- primary key; the partial unique indexes refuse a second default and a reused request_id
insert into mail_server (name, team, display_name, type, mode, status, is_default, sender, smtp, password, limits, annotations, hold_unknown,
  pause_until, version, request_id, fingerprint, create_time, update_time)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?);

-- name: server_get (read)
-- primary key
select name, team, display_name, type, mode, status, is_default, sender, smtp, password, limits, annotations, hold_unknown, pause_until, version, request_id,
  fingerprint, create_time, update_time, delete_time
from mail_server where name = ?;

-- name: server_by_request (read)
-- mail_server_request
select name, team, display_name, type, mode, status, is_default, sender, smtp, password, limits, annotations, hold_unknown, pause_until, version, request_id,
  fingerprint, create_time, update_time, delete_time
from mail_server where team = ? and request_id = ?;

-- name: server_default (read)
-- mail_server_default
select name, team, display_name, type, mode, status, is_default, sender, smtp, password, limits, annotations, hold_unknown, pause_until, version, request_id,
  fingerprint, create_time, update_time, delete_time
from mail_server where team = ? and is_default;

-- name: server_update
-- primary key
update mail_server set display_name = ?, mode = ?, status = ?, is_default = ?, sender = ?, smtp = ?, password = ?, limits = ?, annotations = ?,
  hold_unknown = ?, pause_until = ?, version = ?, update_time = ?, delete_time = ?
where name = ?;

-- name: server_clear_default
-- mail_server_default
update mail_server set is_default = ?, version = version + 1, update_time = ? where team = ? and is_default and name <> ?;

-- name: server_pending (read)
-- due_server; failed and unknown mail waits for a person, not for the mail server
select count(*) from due where mail_server = ? and status not in ('failed', 'unknown') and not (status = 'partially_sent' and run_at is null);

-- name: audit_insert
-- none needed
insert into audit (time, actor, action, team, target, reason, detail) values (?, ?, ?, ?, ?, ?, ?);

-- name: replica_unregister
-- primary key
delete from replica where id = ? and not exists (select 1 from due where owner = replica.id);

-- name: owned
-- due_owner
select id, claim from due where owner = ?;

-- name: mail_request (read)
-- mail_request
select id, fingerprint from mail where team = ? and request_id = ?;

-- name: mail_exists (read)
-- primary key
select count(*) from mail where id = ?;

-- name: content_chunks (read)
-- primary key
select data from content_chunk where hash = ? order by n;

-- name: content_look (look)
-- primary key
select data from content_chunk where hash = ? order by n;

-- name: content_touch
-- primary key
update content set touched = ?, used = used or ? where hash = ?;

-- name: content_insert
-- primary key
insert into content (hash, size, touched, used) values (?, ?, ?, ?) on conflict do nothing;

-- name: chunk_insert
-- primary key
insert into content_chunk (hash, n, data) values (?, ?, ?) on conflict do nothing;

-- name: due_count (look)
-- due_server
select count(*) from due where mail_server = ?;

-- name: breakers (read)
-- a handful of rows
select mail_server, version, failures, reason, retry_at, probe_until, healed_at, success_at, failure_at, last_failure from breaker;

-- name: breaker_make
-- primary key
insert into breaker (mail_server, version) values (?, 0) on conflict do nothing;

-- name: breaker_write
-- primary key
update breaker set version = ?, failures = ?, reason = ?, retry_at = ?, probe_until = ?, healed_at = ?, success_at = ?, failure_at = ?, last_failure = ?
where mail_server = ?;

-- name: quota_make
-- primary key
insert into quota (mail_server, tokens, refilled_at, day, day_used) values (?, ?, ?, ?, 0) on conflict do nothing;

-- name: quota_write
-- primary key
update quota set tokens = ?, refilled_at = ?, day = ?, day_used = ? where mail_server = ?;

-- name: rate_share
-- primary key
select call, granted, held from rate_share where mail_server = ? and replica = ?;

-- name: rate_share_write
-- primary key
insert into rate_share (mail_server, replica, call, granted, held) values (?, ?, ?, ?, ?)
on conflict (mail_server, replica) do update set call = excluded.call, granted = excluded.granted, held = excluded.held;

-- name: rate_share_forget
-- primary key; what those held that are gone counts as used
delete from rate_share where mail_server = ? and replica not in (select id from replica);

-- name: rate_others
-- primary key; one row a replica
select coalesce(sum(x.held), 0) from rate_share x join replica r on r.id = x.replica
where x.mail_server = ? and x.replica <> ? and r.alive_until > ?;

-- name: change_forgotten (look)
-- one row
select generation, xid, seq from change_forgotten;

-- name: chunk_delete
-- primary key
delete from content_chunk where hash = ?;

-- name: upload_insert
-- primary key; upload_request refuses a reused request_id
insert into upload (id, team, filename, content_type, sha256, size_bytes, hash, content_size, request_id, create_time, expire_time)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing;

-- name: upload_get (look)
-- primary key
select id, team, filename, content_type, sha256, size_bytes, hash, content_size, expire_time from upload where id = ? and team = ? and expire_time > ?;

-- name: upload_by_request (look)
-- upload_request
select id, team, filename, content_type, sha256, size_bytes, hash, content_size, expire_time from upload where team = ? and request_id = ?;

-- name: upload_use
-- primary key
update upload set expire_time = ? where id = ? and expire_time < ?;

-- name: upload_forget
-- upload_expire
delete from upload where expire_time <= ?;

-- name: token_insert
-- primary key
insert into token (id, name, hash, roles, teams, kinds, mail_servers, system, created_by, create_time, expire_time)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: tokens (read)
-- a handful of rows
select id, name, hash, roles, teams, kinds, mail_servers, system, created_by, create_time, expire_time, use_time, revoke_time
from token where expire_time > ?;

-- name: token_list (look)
-- primary key
select id, name, hash, roles, teams, kinds, mail_servers, system, created_by, create_time, expire_time, use_time, revoke_time
from token where id > ? and (? or revoke_time is null and expire_time > ?) order by id limit ?;

-- name: token_get
-- primary key
select id, name, hash, roles, teams, kinds, mail_servers, system, created_by, create_time, expire_time, use_time, revoke_time
from token where id = ?;

-- name: token_revoke
-- primary key
update token set revoke_time = ? where id = ? and revoke_time is null;

-- name: token_use
-- primary key
update token set use_time = ? where id = ? and (use_time is null or use_time < ?);

-- name: access_on (read)
-- one row
select access_on from installation;

-- name: access_switch
-- one row
update installation set access_on = ?;

-- name: replica_old
-- a handful of rows
select name from replica where alive_until > ? and asks = 0;
