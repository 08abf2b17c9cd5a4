-- The hot statements for SQLite: row by row (terms as a list) inside one transaction of the one
-- writer, times bound by the caller.

-- name: enqueue_mail
-- primary key and mail_request decide what is new
-- takes: id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id,
--   size_bytes, recipients, labels, request_id, fingerprint, route, utf8, create_time,
--   expire_time, raw, layout, batch_id, resent_from, resend_reason, caller, guard, trace
insert into mail (id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, labels, request_id,
  fingerprint, route, utf8, create_time, expire_time, raw, layout, batch_id, resent_from, resend_reason, caller, guard, listed, trace)
values (:id, :team, :mail_server, :mode, :kind, :priority, :reference, :sender, :subject, :message_id, :size_bytes, :recipients, :labels, :request_id, :fingerprint, :route, :utf8, :create_time, :expire_time, :raw, :layout, :batch_id, :resent_from, :resend_reason, :caller, :guard, true, :trace) on conflict do nothing;

-- name: erased_requests (read)
-- none: the first row, if there is any
select exists (select 1 from erased_request);

-- name: server_has_version (read)
-- primary key
-- takes: name, version
select count(*) from mail_server where name = :name and version = :version;

-- name: enqueue_due
-- primary key
-- takes: id, team, mail_server, priority, kind, batch_id, caller, create_time, status, run_at,
--   resume_at, held
insert into due (id, team, mail_server, priority, kind, batch_id, caller, create_time, status, run_at, resume_at, last_error)
values (:id, :team, :mail_server, :priority, :kind, :batch_id, :caller, :create_time, :status, :run_at, :resume_at, :held);

-- name: enqueue_own
-- primary key; behind enqueue_due, whose trigger logs the status that the mail is taken with. A
-- replica that is taken for dead owns nothing: its mail waits for whoever claims it. Its token
-- is past the one that the replica goes by, so that none of its writes counts.
-- takes: replica, id
update due set owner = (select id from replica where id = :replica and alive_until > 0),
  claim = case when exists (select 1 from replica where id = :replica and alive_until > 0) then 1 else 2 end
where id = :id;

-- name: enqueue_term
-- none is looked up; in the order of the primary key, so that a batch walks through it once
-- takes: list
insert into term (term, mail_id) select value ->> 0, value ->> 1 from json_each(:list) where true order by 1, 2 on conflict do nothing;

-- name: due_servers (read)
-- due_ready: a loose scan for each mail server finds the first mail of each (team, priority)
-- that waits
-- takes: run_at
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
  ) select 1 from p where run_at <= :run_at);

-- name: server_versions (read)
-- a handful of rows
-- takes: names
select name, version from mail_server where name in (select value from json_each(:names));

-- name: claim
-- due_ready: a loose scan finds the first mail of each (team, priority) that waits, one probe
-- each. Of the teams that have something due, no more than mails are wanted take part, others
-- each time. Every team gets its share of the page by priority, and the page is filled by rank.
-- Nobody claims for a replica that is taken for dead. except: what is damaged.
-- takes: server, max, now, above, replica, except
{pick}
update due set owner = :replica, claim = claim + 1 where id in (
  select id from (select id, row_number() over (partition by team order by priority desc, run_at) as rank from l)
  where rank <= (select n from share) order by rank, random() limit :max)
returning id;

-- name: claimable
-- due_ready, as claim, of which it is the first half
-- takes: server, max, now, above, replica, except
{pick}
select id from (select id, row_number() over (partition by team order by priority desc, run_at) as rank from l)
where rank <= (select n from share) order by rank, random() limit :max;

-- name: claim_these
-- primary key
-- takes: ids, server, now, replica
update due set owner = :replica, claim = claim + 1
where id in (select value from json_each(:ids)) and mail_server = :server and owner is null and run_at <= :now
  and exists (select 1 from replica where id = :replica and alive_until > 0)
returning id;

-- name: pick (part)
-- of claim and of claimable
with recursive p(id, team, priority, run_at) as (
  select * from (select id, team, priority, run_at from due where mail_server = :server and owner is null and run_at is not null
    order by team, priority, run_at limit 1)
  union all
  -- The same team's next priority, else the next team's first: comparing both as one row would
  -- read all mails of a pair.
  select n.id, n.team, n.priority, n.run_at from p join due n on n.id = coalesce(
    (select d.id from due d where d.mail_server = :server and d.team = p.team and d.priority > p.priority and d.owner is null and d.run_at is not null
      order by d.priority, d.run_at limit 1),
    (select d.id from due d where d.mail_server = :server and d.team > p.team and d.owner is null and d.run_at is not null
      order by d.team, d.priority, d.run_at limit 1))
), w as materialized (
  select team, priority from p where run_at <= :now and priority > :above
), t as materialized (
  select team from (select distinct team from w) where exists (select 1 from replica where id = :replica and alive_until > 0) order by random() limit :max
), share(n) as (
  select (:max + max(1, count(*)) - 1) / max(1, count(*)) from t
), l as materialized (
  select d.id, d.team, d.priority, d.run_at from w join due d on d.id in (
    select x.id from due x
    where x.mail_server = :server and x.team = w.team and x.priority = w.priority and x.owner is null and x.run_at is not null and x.run_at <= :now
      and x.id not in (select value from json_each(:except))
    order by x.run_at limit (select n from share))
  where w.team in (select team from t)
);

-- name: claimed
-- primary keys
-- takes: ids
select {claimed}, q.begun, q.possible_duplicate, q.progress, q.data_at,
  coalesce(s.hold_unknown, 0) as hold_unknown
from json_each(:ids) j join due q on q.id = j.value join mail m on m.id = q.id left join mail_server s on s.name = m.mail_server;

-- name: settle_mark
-- primary key; no mark is taken for what an operation holds or cancels
-- takes: data_at, id, owner, claim
update due set data_at = :data_at where id = :id and owner = :owner and claim = :claim
  and not exists (select 1 from operation_brake b cross join mail m on m.id = due.id
    where (b.every_team or due.team in (select value from json_each(b.teams))) and (b.caller is null or m.caller = b.caller) and (b.team is null or due.team = b.team)
      and (b.mail_server is null or due.mail_server = b.mail_server) and (b.kind is null or m.kind = b.kind) and (b.batch_id is null or m.batch_id = b.batch_id)
      and (b.reference is null or m.reference = b.reference) and (b.message_id is null or m.message_id = b.message_id) and (b.request_id is null or m.request_id = b.request_id)
      and (b.statuses is null or due.status in (select value from json_each(b.statuses)))
      and m.create_time < b.bound and (b.since is null or m.create_time >= b.since)
      and not exists (select 1 from json_each(b.terms) t where not exists (select 1 from term x where x.term = cast(t.value as integer) and x.mail_id = m.id)));

-- name: settle_begin
-- primary key
-- takes: crashes, id, owner, claim
update due set crashes = :crashes, begun = 1 where id = :id and owner = :owner and claim = :claim;

-- name: settle_update
-- primary key
-- takes: status, run_at, crashes, attempts, progress, possible_duplicate, last_error, id,
--   owner, claim
update due set status = :status, run_at = :run_at, owner = null, data_at = null, begun = 0, crashes = :crashes, attempts = :attempts, progress = :progress, possible_duplicate = :possible_duplicate, last_error = :last_error
where id = :id and owner = :owner and claim = :claim;

-- name: settle_unreadable
-- primary key
-- takes: status, last_error, id, owner, claim
update due set status = :status, run_at = null, owner = null, data_at = null, begun = 0, crashes = 0, last_error = :last_error where id = :id and owner = :owner and claim = :claim;

-- name: settle_progress
-- primary key; claim: the next transaction goes under a token of its own, so that this
-- statement, delivered late, does not take its mark
-- takes: status, attempts, progress, possible_duplicate, last_error, id, owner, claim
update due set data_at = null, claim = claim + 1, status = coalesce(:status, status), attempts = :attempts, progress = :progress, possible_duplicate = :possible_duplicate, last_error = :last_error
where id = :id and owner = :owner and claim = :claim;

-- name: settle_archive
-- primary key
-- takes: now, status, attempts, duplicate, error, result, id, owner, claim
insert into archive (id, team, mail_server, priority, kind, batch_id, caller, create_time, done_at, status, attempts, possible_duplicate, last_error, result, claim)
select id, team, mail_server, priority, kind, batch_id, caller, create_time, :now, :status, :attempts, :duplicate, :error, :result, claim from due where id = :id and owner = :owner and claim = :claim;

-- name: settle_delete
-- primary key
-- takes: id, owner, claim
delete from due where id = :id and owner = :owner and claim = :claim;

-- name: upload_get (look)
-- primary key
-- takes: ids, team, expire_time
select id, team, filename, content_type, sha256, size_bytes, hash, content_size, expire_time
from upload where id in (select value from json_each(:ids)) and team = :team and expire_time > :expire_time;

-- name: upload_use
-- primary key
-- takes: until, ids
update upload set expire_time = :until where id in (select value from json_each(:ids)) and expire_time < :until;

-- name: modify_servers (read)
-- primary key
-- takes: names
select {server}
from mail_server where name in (select value from json_each(:names));

-- name: settled_under
-- primary keys; a claim that ended without its owner's word has a higher number than the owner
-- knows. o: progress, whose owner keeps the mail
-- takes: results
select d.id from json_each(:results) j cross join due d on d.id = j.value ->> 'id' where d.owner is (j.value ->> 'o') and d.claim = j.value ->> 'c' and d.data_at is null
union all
select a.id from json_each(:results) j cross join archive a on a.id = j.value ->> 'id' where j.value ->> 'o' is null and a.claim = j.value ->> 'c';

-- name: modify_lock
-- primary keys; the one writer is the lock
-- takes: ids
select {mail}, d.status, d.run_at, d.resume_at, d.attempts, d.owner,
  d.possible_duplicate, d.progress, d.last_error
from json_each(:ids) j join due d on d.id = j.value join mail m on m.id = d.id
where d.owner is null;

-- name: modify_lock_owned
-- primary keys; the one writer is the lock
-- takes: ids
select {mail}, d.status, d.run_at, d.resume_at, d.attempts, d.owner,
  d.possible_duplicate, d.progress, d.last_error
from json_each(:ids) j join due d on d.id = j.value join mail m on m.id = d.id
where d.owner is not null and d.data_at is null;

-- name: due_modify
-- primary key; crashes: a person has looked at it, so a quarantine begins anew. Whoever had the
-- mail has it no more: its token ends, by more than the writes of one attempt raise it.
-- takes: status, run_at, resume_at, attempts, progress, possible_duplicate, last_error, id
update due set crashes = 0, begun = 0, owner = null, claim = case when owner is null then claim else claim + 1000 end, status = :status, run_at = :run_at, resume_at = :resume_at, attempts = :attempts, progress = :progress, possible_duplicate = :possible_duplicate, last_error = :last_error
where id = :id and (owner is null or data_at is null);

-- name: due_delete
-- primary key
-- takes: id
delete from due where id = :id and (owner is null or data_at is null);

-- name: archive_insert
-- primary key
-- takes: now, status, attempts, duplicate, error, result, id
insert into archive (id, team, mail_server, priority, kind, batch_id, caller, create_time, done_at, status, attempts, possible_duplicate, last_error, result, claim)
select id, team, mail_server, priority, kind, batch_id, caller, create_time, :now, :status, :attempts, :duplicate, :error, :result, case when owner is null then claim else claim + 1000 end
from due where id = :id and (owner is null or data_at is null);

-- name: replica_register (lease)
-- primary key
-- takes: name, alive_until
insert into replica (name, alive_until, asks) values (:name, :alive_until, 1) returning id;

-- name: replica_bury_all
-- one process by definition: whoever was there before is dead
update replica set alive_until = 0;

-- name: replica_renew (lease)
-- primary key; 0 = somebody has taken it for dead
-- takes: alive_until, id
update replica set alive_until = :alive_until where id = :id and alive_until > 0;

-- name: owners_gone
-- due_owner: whoever is not known to live is gone
select distinct owner from due where owner is not null and not exists (select 1 from replica r where r.id = due.owner and r.alive_until > 0);

-- name: owned_by
-- due_owner
-- takes: owners
select id from due where owner in (select value from json_each(:owners)) order by id;

-- name: recover_unmarked
-- primary key
-- takes: ids, gone
update due set owner = null, claim = claim + 1, crashes = max(crashes, 1)
where id in (select value from json_each(:ids)) and data_at is null and crashes < 2 and +owner in (select value from json_each(:gone));

-- name: recover_marked
-- primary key; suspects as well: when they are tried again is the engine's rule
-- takes: me, ids, gone, max
update due set owner = :me, claim = claim + 1, crashes = max(crashes, 1) where id in (
  select id from due where id in (select value from json_each(:ids)) and (data_at is not null or crashes > 1) and +owner in (select value from json_each(:gone))
    and exists (select 1 from replica where id = :me and alive_until > 0) limit :max)
returning id;

-- name: take_back
-- due_owner; begun: somebody died of it, so what becomes of it is the engine's rule
-- takes: lost, owner
update due set owner = null, claim = claim + 1
where (id, claim) in (select value ->> 'id', value ->> 'c' from json_each(:lost)) and owner = :owner and data_at is null and not begun;

-- name: take_back_marked
-- due_owner
-- takes: lost, owner
update due set claim = claim + 1
where (id, claim) in (select value ->> 'id', value ->> 'c' from json_each(:lost)) and owner = :owner and (data_at is not null or begun)
returning id;

-- name: replica_release
-- primary key; an end in good order is no death: what was counted when a suspect was begun is
-- taken back
-- takes: ids, owner
update due set owner = null, claim = claim + 1,
  crashes = crashes - case when begun then 1 else 0 end, begun = false
where id in (select value from json_each(:ids)) and +owner = :owner and data_at is null;

-- name: server_hold
-- one of two: due_ready, or due_server where most of the mail server's mail waits
-- takes: server, reason
update due set status = 'held', resume_at = run_at, run_at = null, last_error = :reason
where mail_server = :server and owner is null and run_at is not null returning team, 1 as mails;

-- name: replica_end
-- primary key
-- takes: id
update replica set alive_until = 0 where id = :id;

-- name: replica_forget
-- due_owner
delete from replica where alive_until = 0 and not exists (select 1 from due where owner = replica.id);

-- name: breaker_lock
-- primary key; the one writer is the lock
-- takes: mail_server
select mail_server, version, failures, reason, retry_at, probe_until, healed_at, success_at, failure_at, last_failure from breaker where mail_server = :mail_server;

-- name: quota_lock
-- primary key; the one writer is the lock
-- takes: mail_server
select tokens, refilled_at, day, day_used from quota where mail_server = :mail_server;

-- name: allowance_lock
-- primary key; the one writer is the lock
-- takes: key
select used from allowance where key = :key;

-- name: change_horizon (look)
-- primary key
select generation, max(coalesce((select max(seq) from change), 0), seq) as horizon from change_forgotten;

-- name: change_read (look)
-- primary key; xid is always 0, seq is the position
-- takes: xid, seq, horizon, max
select xid, seq, mail_id, status, time from change where :xid is not null and seq > :seq and seq <= :horizon order by seq limit :max;

-- name: change_note
-- primary key
-- takes: max, before
update change_forgotten set seq = max(seq, coalesce((
  select max(seq) from (select seq, time from change order by seq limit :max) where time < :before), 0));

-- name: change_forget
-- primary key
delete from change where seq <= (select seq from change_forgotten);

-- name: batch_count (look)
-- due_owner, and the primary key of count_batch; count_delta has a handful of rows. One
-- statement, so that all of it is of one moment. What is marked is counted as what it would be
-- without its owner, so it comes once more by itself. The plus keeps the planner from due_team,
-- which has all that waits.
-- takes: batch_id, team, caller
select status, sum(n) as mails, sum(case when waiting then n else 0 end) as waiting, sum(case when doubtful then n else 0 end) as doubtful,
  min(first) as first, max(last) as last, 0 as marked
from (
  select status, waiting, doubtful, n, first, last from count_batch where batch_id = :batch_id and team = :team and (:caller = '' or caller = :caller)
  union all
  select status, second >= 0 and status not in ('sent', 'cancelled'), doubtful, n, first, last from count_delta
  where batch_id = :batch_id and team = :team and (:caller = '' or caller = :caller)) x
group by 1
union all
select d.status, count(*), 0, 0, null, null, 1
from due d cross join mail m on m.id = d.id
where d.owner is not null and d.data_at is not null and +d.team = :team and m.batch_id = :batch_id and (:caller = '' or m.caller = :caller)
group by 1;

-- name: batch_count_rows (look)
-- mail_batch, then the primary keys of due and archive: while the counters have not counted
-- what was there before them. One statement, so that a mail that moves meanwhile is counted
-- once
-- takes: batch_id, team, caller
with b as (select id, create_time from mail where batch_id = :batch_id and team = :team and (:caller = '' or caller = :caller))
select case when d.owner is not null and d.data_at is not null then 'sending' else d.status end as status, count(*) as mails,
  count(*) filter (where d.owner is not null or d.run_at is not null) as waiting, count(*) filter (where d.possible_duplicate) as doubtful,
  min(b.create_time) as first, null as last
from b join due d on d.id = b.id group by 1
union all
select a.status, count(*), 0, count(*) filter (where a.possible_duplicate), min(b.create_time), max(a.done_at)
from b join archive a on a.id = b.id group by 1;

-- name: count_page
-- none: the table's own order
-- takes: max
select coalesce(max(place), 0) as last, count(*) as n from (select rowid as place from count_delta order by rowid limit :max);

-- name: count_fold_queue
-- primary key. What is past is all due, so the second in which it became due is not kept.
-- takes: last, now
insert into count_queue (team, mail_server, priority, kind, status, second, n)
select team, mail_server, priority, kind, status, case when status <> 'sent' and second between 1 and :now then 0 else second end as at, sum(n)
from count_delta where rowid <= :last and status <> 'cancelled' group by 1, 2, 3, 4, 5, at having sum(n) <> 0
on conflict do update set n = n + excluded.n;

-- name: count_fold_batch
-- primary key
-- takes: last
insert into count_batch as t (batch_id, team, caller, status, waiting, doubtful, n, first, last)
select batch_id, team, caller, status, second >= 0 and status not in ('sent', 'cancelled') as waits, doubtful, sum(n), min(first), max(last)
from count_delta where rowid <= :last and batch_id is not null group by 1, 2, 3, 4, waits, doubtful
on conflict do update set n = t.n + excluded.n, first = min(coalesce(t.first, excluded.first), coalesce(excluded.first, t.first)),
  last = max(coalesce(t.last, excluded.last), coalesce(excluded.last, t.last));

-- name: count_fold_batches
-- primary key; what a batch has none of any more
-- takes: last
delete from count_batch where n = 0 and batch_id in (select batch_id from count_delta where rowid <= :last);

-- name: count_folded
-- none: the table's own order
-- takes: last
delete from count_delta where rowid <= :last;

-- name: count_ripen
-- a handful of rows: one for each mail server, kind and status, and for each second of what is
-- due later or was sent in the last minutes
-- takes: now
insert into count_queue (team, mail_server, priority, kind, status, second, n)
select team, mail_server, priority, kind, status, 0, sum(n) from count_queue where status <> 'sent' and second between 1 and :now group by 1, 2, 3, 4, 5
on conflict do update set n = n + excluded.n;

-- name: count_ripened
-- a handful of rows, as count_ripen
-- takes: now
delete from count_queue where status <> 'sent' and second between 1 and :now or status = 'sent' and second < :now - 120;

-- name: lanes (look)
-- due_ready: a loose scan finds the first mail of each (mail server, team, priority) that
-- waits. Comparing all three as one row would read all mails of a pair.
with recursive p(id, mail_server, team, priority, run_at) as (
  select * from (select id, mail_server, team, priority, run_at from due where owner is null and run_at is not null order by mail_server, team, priority, run_at limit 1)
  union all
  select n.id, n.mail_server, n.team, n.priority, n.run_at from p join due n on n.id = coalesce(
    (select d.id from due d where d.mail_server = p.mail_server and d.team = p.team and d.priority > p.priority and d.owner is null and d.run_at is not null
      order by d.priority, d.run_at limit 1),
    (select d.id from due d where d.mail_server = p.mail_server and d.team > p.team and d.owner is null and d.run_at is not null
      order by d.team, d.priority, d.run_at limit 1),
    (select d.id from due d where d.mail_server > p.mail_server and d.owner is null and d.run_at is not null
      order by d.mail_server, d.team, d.priority, d.run_at limit 1))
)
select mail_server, team, priority, run_at from p;

-- name: content_collect
-- content_unused; nothing that an upload still needs, and three days after the last use, so
-- that nobody is about to refer to it
-- takes: touched
delete from content where not used and touched < :touched and not exists (select 1 from upload u where u.hash = content.hash) returning hash;

-- name: mail_raw (look)
-- primary key; a mail of a team that the caller does not see is not read at all
-- takes: bytes, id, all, teams, caller
select length(m.raw) as size, substr(m.raw, 1, :bytes) as first, m.layout, m.removed from mail m where m.id = :id and (:all or m.team in (select value from json_each(:teams))) and (:caller = '' or m.caller = :caller);

-- name: mail_copy (look)
-- primary key; as mail_raw
-- takes: id, all, teams, caller
select id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, utf8, route, recipients, labels, raw, layout, removed
from mail where id = :id and (:all or team in (select value from json_each(:teams))) and (:caller = '' or caller = :caller);

-- name: move_target
-- primary key; no mail goes to a mail server that is being deleted or switched off
-- takes: name
select name from mail_server where name = :name and delete_time is null and status = 'available';

-- name: move_due
-- primary key
-- takes: server, ids
update due set mail_server = :server where id in (select value from json_each(:ids));

-- name: move_mail
-- primary key
-- takes: server, ids
update mail set mail_server = :server where id in (select value from json_each(:ids));

-- name: unguard
-- primary key
-- takes: ids
update mail set guard = null where id in (select value from json_each(:ids));

-- name: audit_rows (look)
-- primary key, read backwards; the log is as long as people's acts are many
-- takes: before, all, teams, any_team, team, actor, action, target, since, until, max
select id, seq, hash, time, actor, action, team, target, reason, cast(detail as text) as detail from audit
where id < :before and (:all or team in (select value from json_each(:teams))) and (:any_team or team = :team)
  and (:actor = '' or actor = :actor) and (:action = '' or action = :action) and (:target = '' or target = :target)
  and (:since is null or time >= :since) and (:until is null or time < :until)
order by id desc limit :max;

-- name: access_lock
-- one row; the one writer has the database to itself
select access_on from installation;

-- name: purge_page (look)
-- archive_done, then the primary key of mail one by one; all but id and done_at is null for
-- mail of another kind
-- takes: at, id, before, max, kind
select c.id, c.done_at, m.team, m.reference, m.message_id, m.recipients, m.labels, m.layout, m.removed, length(m.raw) as bytes
from (select id, done_at from archive where (done_at, id) > (:at, :id) and done_at < :before order by done_at, id limit :max) c
left join mail m on m.id = c.id and m.kind = :kind order by c.done_at, c.id;

-- name: rule_next (look)
-- archive_done
-- takes: at, id, before
select done_at from archive where (done_at, id) > (:at, :id) and done_at < :before order by done_at, id limit 1;

-- name: purge_terms
-- primary key, row by row
-- takes: terms
delete from term where (term, mail_id) in (select cast(value ->> 0 as integer), value ->> 1 from json_each(:terms));

-- name: walk_terms
-- none is looked up
-- takes: terms
insert into term (term, mail_id) select cast(value ->> 0 as integer), value ->> 1 from json_each(:terms) where true on conflict do nothing;

-- name: unlisted_mails
-- primary key
-- takes: ids
select id, layout, coalesce(removed, '') as removed from mail where id in (select value from json_each(:ids)) and layout is not null and not listed;

-- name: mail_listed
-- primary key
-- takes: ids
update mail set listed = true where id in (select value from json_each(:ids));

-- name: content_lock
-- primary key; the one writer is the lock
-- takes: hash
select hash from content where hash = :hash;

-- name: database_bytes (look)
-- none
select page_count * page_size from pragma_page_count, pragma_page_size;

-- name: holder_lock
-- primary key; the one writer is the lock
select name from retention where name = 'holder';

-- name: hold_get
-- primary key
-- takes: id, all, teams
select id, team, mail_id, reference, reason, placed_by, place_time, lifted_by, lift_reason, lift_time from legal_hold
where id = :id and (:all or team in (select value from json_each(:teams)));

-- name: hold_list (look)
-- a handful of rows
-- takes: after, all, teams, any_team, team, lifted, max
select id, team, mail_id, reference, reason, placed_by, place_time, lifted_by, lift_reason, lift_time from legal_hold
where id > :after and (:all or team in (select value from json_each(:teams))) and (:any_team or team = :team)
  and (:lifted or lift_time is null) order by id limit :max;

-- name: purge_free
-- primary key of mail, then legal_hold_open
-- takes: ids
select m.id from mail m where m.id in (select value from json_each(:ids)) and not exists (
  select 1 from legal_hold h where h.lift_time is null and h.team = m.team
    and case when h.mail_id is not null then h.mail_id = m.id when h.reference is not null then h.reference = m.reference else true end);

-- name: purge_archive
-- primary key
-- takes: ids
delete from archive where id in (select value from json_each(:ids));

-- name: purge_requests
-- erased_request_mail
-- takes: ids
delete from erased_request where mail_id in (select value from json_each(:ids));

-- name: purge_mail
-- primary key; nothing that is in the due-out journal, whatever the list says
-- takes: ids
delete from mail where id in (select value from json_each(:ids)) and case when exists (select 1 from due d where d.id = mail.id) then false else true end;

-- name: purge_body
-- primary key; as purge_mail
-- takes: removed, ids
update mail set removed = :removed, raw = '', layout = null where id in (select value from json_each(:ids))
  and removed is distinct from 'erased' and case when exists (select 1 from due d where d.id = mail.id) then false else true end;

-- name: purge_attachments
-- primary key; as purge_mail. The layout stays: it has the sums of what was removed
-- takes: removed, ids
update mail set removed = :removed where id in (select value from json_each(:ids)) and removed is null and case when exists (select 1 from due d where d.id = mail.id) then false else true end;

-- name: operation_take
-- operation_running: the oldest one; those that only count last, and those with a fault, which
--   are as old as that
-- takes: replica
update operation set owner = :replica where id = (select id from operation where state = 'running' order by (dry or error <> ''), case when error = '' then create_time else update_time end, id limit 1) returning id, action, scope, filter, request, actor, reason, dry, bound, state, owner, after, pending, total, matched, changed, failed, failures, error, create_time, update_time, end_time;

-- name: operation_lock
-- primary key
-- takes: id, replica
select id, action, scope, filter, request, actor, reason, dry, bound, state, owner, after, pending, total, matched, changed, failed, failures, error, create_time, update_time, end_time from operation where id = :id and state = 'running' and owner = :replica;

-- name: operation_stop
-- primary key
-- takes: now, id
update operation set state = 'stopped', request = '{}', end_time = :now, update_time = :now where id = :id and state = 'running' returning id;

-- name: operate_lock
-- primary keys; as modify_lock and modify_lock_owned, of mail only what decides
-- takes: ids
select d.id, d.team, d.mail_server, m.kind, m.size_bytes, m.recipients, m.caller, m.guard, m.expire_time, m.create_time,
  d.status, d.run_at, d.resume_at, d.attempts, d.owner, d.possible_duplicate, d.progress, d.last_error, 0 as lead
from json_each(:ids) j join due d on d.id = j.value join mail m on m.id = d.id
where d.owner is null or d.data_at is null;

-- name: operate_left
-- primary key
-- takes: ids
select id, data_at is not null as marked from due where id in (select value from json_each(:ids));
