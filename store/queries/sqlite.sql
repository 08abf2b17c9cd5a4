-- The hot statements for SQLite: row by row (terms as a list) inside one transaction of the one
-- writer, times bound by the caller.

-- name: enqueue_mail
-- primary key and mail_request decide what is new
insert into mail (id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, labels, request_id,
  fingerprint, route, utf8, create_time, expire_time, raw, layout, batch_id, resent_from, resend_reason, caller)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing;

-- name: server_has_version (read)
-- primary key
select count(*) from mail_server where name = ? and version = ?;

-- name: enqueue_due
-- primary key; a replica that is taken for dead owns nothing: its mail waits for whoever claims
-- it
insert into due (id, team, mail_server, priority, status, run_at, resume_at, owner, claim, last_error)
values (?1, ?2, ?3, ?4, ?5, ?6, ?7, (select id from replica where id = ?8 and alive_until > 0), case when ?8 is null then 0 when exists (select 1 from replica where id = ?8 and alive_until > 0) then 1 else 2 end, ?9);

-- name: enqueue_term
-- none is looked up; in the order of the primary key, so that a batch walks through it once
insert into term (term, mail_id) select value ->> 0, value ->> 1 from json_each(?) where true order by 1, 2 on conflict do nothing;

-- name: due_servers (read)
-- due_ready: a loose scan for each mail server finds the first mail of each (team, priority)
-- that waits
select name from mail_server s where exists (
  with recursive p(id, team, priority, run_at) as (
    select * from (select id, team, priority, run_at from due where mail_server = s.name and owner is null and run_at is not null
      order by team, priority, run_at limit 1)
    union all
    -- The same team's next priority, else the next team's first: comparing both as one row
    -- would read all mails of a pair.
    select n.id, n.team, n.priority, n.run_at from p join due n on n.id = coalesce(
      (select d.id from due d where d.mail_server = s.name and d.team = p.team and d.priority > p.priority and d.owner is null and d.run_at is not null
        order by d.priority, d.run_at limit 1),
      (select d.id from due d where d.mail_server = s.name and d.team > p.team and d.owner is null and d.run_at is not null
        order by d.team, d.priority, d.run_at limit 1))
  ) select 1 from p where run_at <= ?);

-- name: server_versions (read)
-- a handful of rows
select name, version from mail_server where name in (select value from json_each(?));

-- name: claim
-- due_ready: a loose scan finds the first mail of each (team, priority) that waits, one probe
-- each. Of the teams that have something due, no more than mails are wanted take part, others
-- each time. Every team gets its share of the page by priority, and the page is filled by rank.
-- Nobody claims for a replica that is taken for dead.
with recursive p(id, team, priority, run_at) as (
  select * from (select id, team, priority, run_at from due where mail_server = ?1 and owner is null and run_at is not null
    order by team, priority, run_at limit 1)
  union all
  -- The same team's next priority, else the next team's first: comparing both as one row would
  -- read all mails of a pair.
  select n.id, n.team, n.priority, n.run_at from p join due n on n.id = coalesce(
    (select d.id from due d where d.mail_server = ?1 and d.team = p.team and d.priority > p.priority and d.owner is null and d.run_at is not null
      order by d.priority, d.run_at limit 1),
    (select d.id from due d where d.mail_server = ?1 and d.team > p.team and d.owner is null and d.run_at is not null
      order by d.team, d.priority, d.run_at limit 1))
), w as materialized (
  select team, priority from p where run_at <= ?3 and priority > ?4
), t as materialized (
  select team from (select distinct team from w) where exists (select 1 from replica where id = ?5 and alive_until > 0) order by random() limit ?2
), share(n) as (
  select (?2 + max(1, count(*)) - 1) / max(1, count(*)) from t
), l as materialized (
  select d.id, d.team, d.priority, d.run_at from w join due d on d.id in (
    select x.id from due x
    where x.mail_server = ?1 and x.team = w.team and x.priority = w.priority and x.owner is null and x.run_at is not null and x.run_at <= ?3
    order by x.run_at limit (select n from share))
  where w.team in (select team from t)
)
update due set owner = ?5, claim = claim + 1 where id in (
  select id from (select id, row_number() over (partition by team order by priority desc, run_at) as rank from l)
  where rank <= (select n from share) order by rank, random() limit ?2)
returning id;

-- name: claimed
-- primary keys
select m.id, m.team, m.mail_server, m.mode, m.kind, m.priority, m.sender, m.message_id, m.size_bytes, m.utf8, m.recipients, m.create_time,
  m.expire_time, m.raw, m.layout, q.claim, q.run_at, q.attempts, q.crashes, q.begun, q.possible_duplicate, q.progress, q.data_at,
  coalesce(s.hold_unknown, 0) as hold_unknown
from json_each(?) j join due q on q.id = j.value join mail m on m.id = q.id left join mail_server s on s.name = m.mail_server;

-- name: settle_mark
-- primary key
update due set data_at = ? where id = ? and owner = ? and claim = ?;

-- name: settle_begin
-- primary key
update due set crashes = ?, begun = 1 where id = ? and owner = ? and claim = ?;

-- name: settle_update
-- primary key
update due set status = ?, run_at = ?, owner = null, data_at = null, begun = 0, crashes = ?, attempts = ?, progress = ?, possible_duplicate = ?, last_error = ?
where id = ? and owner = ? and claim = ?;

-- name: settle_unreadable
-- primary key
update due set status = ?, run_at = null, owner = null, data_at = null, begun = 0, crashes = 0, last_error = ? where id = ? and owner = ? and claim = ?;

-- name: settle_progress
-- primary key; claim: the next transaction goes under a token of its own, so that this
-- statement, delivered late, does not take its mark
update due set data_at = null, claim = claim + 1, status = coalesce(?, status), attempts = ?, progress = ?, possible_duplicate = ?, last_error = ?
where id = ? and owner = ? and claim = ?;

-- name: settle_archive
-- primary key
insert into archive (id, team, mail_server, done_at, status, attempts, possible_duplicate, last_error, result, claim)
select id, team, mail_server, ?, ?, ?, ?, ?, ?, claim from due where id = ? and owner = ? and claim = ?;

-- name: settle_delete
-- primary key
delete from due where id = ? and owner = ? and claim = ?;

-- name: modify_servers (read)
-- primary key
select name, team, display_name, type, mode, status, is_default, sender, smtp, password, limits, annotations, hold_unknown, pause_until, version, request_id,
  fingerprint, create_time, update_time, delete_time
from mail_server where name in (select value from json_each(?));

-- name: settled_under
-- primary keys; a claim that ended without its owner's word has a higher number than the owner
-- knows. o: progress, whose owner keeps the mail
select d.id from json_each(?1) j cross join due d on d.id = j.value ->> 'id' where d.owner is (j.value ->> 'o') and d.claim = j.value ->> 'c' and d.data_at is null
union all
select a.id from json_each(?1) j cross join archive a on a.id = j.value ->> 'id' where j.value ->> 'o' is null and a.claim = j.value ->> 'c';

-- name: modify_lock
-- primary keys; the one writer is the lock
select m.id, m.team, m.mail_server, m.mode, m.kind, m.priority, m.reference, m.sender, m.subject, m.message_id, m.size_bytes, m.recipients, m.labels,
  m.request_id, m.route, m.create_time, m.expire_time, m.batch_id, m.resent_from, m.resend_reason, d.status, d.run_at, d.resume_at, d.attempts, d.owner,
  d.possible_duplicate, d.progress, d.last_error
from json_each(?) j join due d on d.id = j.value join mail m on m.id = d.id
where d.owner is null;

-- name: modify_lock_owned
-- primary keys; the one writer is the lock
select m.id, m.team, m.mail_server, m.mode, m.kind, m.priority, m.reference, m.sender, m.subject, m.message_id, m.size_bytes, m.recipients, m.labels,
  m.request_id, m.route, m.create_time, m.expire_time, m.batch_id, m.resent_from, m.resend_reason, d.status, d.run_at, d.resume_at, d.attempts, d.owner,
  d.possible_duplicate, d.progress, d.last_error
from json_each(?) j join due d on d.id = j.value join mail m on m.id = d.id
where d.owner is not null and d.data_at is null;

-- name: due_modify
-- primary key; crashes: a person has looked at it, so a quarantine begins anew. Whoever had the
-- mail has it no more: its token ends, by more than the writes of one attempt raise it.
update due set crashes = 0, begun = 0, owner = null, claim = case when owner is null then claim else claim + 1000 end, status = ?, run_at = ?, resume_at = ?, attempts = ?, progress = ?, possible_duplicate = ?, last_error = ?
where id = ? and (owner is null or data_at is null);

-- name: due_delete
-- primary key
delete from due where id = ? and (owner is null or data_at is null);

-- name: archive_insert
-- primary key
insert into archive (id, team, mail_server, done_at, status, attempts, possible_duplicate, last_error, result, claim)
select id, team, mail_server, ?, ?, ?, ?, ?, ?, case when owner is null then claim else claim + 1000 end
from due where id = ? and (owner is null or data_at is null);

-- name: replica_register (lease)
-- primary key
insert into replica (name, alive_until, asks) values (?, ?, 1) returning id;

-- name: replica_bury_all
-- one process by definition: whoever was there before is dead
update replica set alive_until = 0;

-- name: replica_renew (lease)
-- primary key; 0 = somebody has taken it for dead
update replica set alive_until = ? where id = ? and alive_until > 0;

-- name: owners_gone
-- due_owner: whoever is not known to live is gone
select distinct owner from due where owner is not null and not exists (select 1 from replica r where r.id = due.owner and r.alive_until > 0);

-- name: recover_unmarked
-- due_owner
update due set owner = null, claim = claim + 1, crashes = max(crashes, 1)
where data_at is null and crashes < 2 and owner in (select value from json_each(?));

-- name: recover_marked
-- due_owner; suspects as well: when they are tried again is the engine's rule
update due set owner = ?, claim = claim + 1, crashes = max(crashes, 1) where id in (
  select id from due where (data_at is not null or crashes > 1) and owner in (select value from json_each(?))
    and exists (select 1 from replica where id = ? and alive_until > 0) limit ?)
returning id;

-- name: take_back
-- due_owner; begun: somebody died of it, so what becomes of it is the engine's rule
update due set owner = null, claim = claim + 1
where (id, claim) in (select value ->> 'id', value ->> 'c' from json_each(?)) and owner = ? and data_at is null and not begun;

-- name: take_back_marked
-- due_owner
update due set claim = claim + 1
where (id, claim) in (select value ->> 'id', value ->> 'c' from json_each(?)) and owner = ? and (data_at is not null or begun)
returning id;

-- name: replica_release
-- due_owner
update due set owner = null, claim = claim + 1 where owner = ? and data_at is null;

-- name: server_hold
-- one of two: due_ready, or due_server where most of the mail server's mail waits
update due set status = 'held', resume_at = run_at, run_at = null, last_error = ?2
where mail_server = ?1 and owner is null and run_at is not null;

-- name: replica_end
-- primary key
update replica set alive_until = 0 where id = ?;

-- name: replica_forget
-- due_owner
delete from replica where alive_until = 0 and not exists (select 1 from due where owner = replica.id);

-- name: breaker_lock
-- primary key; the one writer is the lock
select mail_server, version, failures, reason, retry_at, probe_until, healed_at, success_at, failure_at, last_failure from breaker where mail_server = ?;

-- name: quota_lock
-- primary key; the one writer is the lock
select tokens, refilled_at, day, day_used from quota where mail_server = ?;

-- name: change_horizon (look)
-- primary key
select generation, max(coalesce((select max(seq) from change), 0), seq) as horizon from change_forgotten;

-- name: change_read (look)
-- primary key; xid is always 0, seq is the position
select xid, seq, mail_id, status, time from change where ?1 is not null and seq > ?2 and seq <= ?3 order by seq limit ?4;

-- name: change_note
-- primary key
update change_forgotten set seq = max(seq, coalesce((
  select max(seq) from (select seq, time from change order by seq limit ?1) where time < ?2), 0));

-- name: change_forget
-- primary key
delete from change where seq <= (select seq from change_forgotten);

-- name: batch_count (look)
-- mail_batch, then the primary keys of due and archive; one statement, so that a mail that
-- moves meanwhile is counted once
with b as (select id, create_time from mail where batch_id = ? and team = ? and (? = '' or caller = ?))
select case when d.owner is not null then 'sending' else d.status end as status, count(*) as mails,
  count(*) filter (where d.owner is not null or d.run_at is not null) as waiting, count(*) filter (where d.possible_duplicate) as doubtful,
  min(b.create_time) as first, null as last
from b join due d on d.id = b.id group by 1
union all
select a.status, count(*), 0, count(*) filter (where a.possible_duplicate), min(b.create_time), max(a.done_at)
from b join archive a on a.id = b.id group by 1;

-- name: content_collect
-- content_unused; nothing that an upload still needs, and three days after the last use, so
-- that nobody is about to refer to it
delete from content where not used and touched < ? and not exists (select 1 from upload u where u.hash = content.hash) returning hash;

-- name: mail_raw (look)
-- primary key; a mail of a team that the caller does not see is not read at all
select m.raw, m.layout from mail m where m.id = ? and (? or m.team in (select value from json_each(?))) and (? = '' or m.caller = ?);

-- name: mail_copy (look)
-- primary key; as mail_raw
select id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, utf8, route, recipients, labels, raw, layout
from mail where id = ? and (? or team in (select value from json_each(?))) and (? = '' or caller = ?);

-- name: move_target
-- primary key; no mail goes to a mail server that is being deleted or switched off
select name from mail_server where name = ? and delete_time is null and status = 'available';

-- name: move_due
-- primary key
update due set mail_server = ? where id in (select value from json_each(?));

-- name: move_mail
-- primary key
update mail set mail_server = ? where id in (select value from json_each(?));
