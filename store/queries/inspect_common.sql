-- What an inspection asks on both databases; inspect.go says what each invariant means. They
-- look at everything there is: no index narrows them, those that are named keep the looks
-- beside a scan cheap. All run in one snapshot of a reading transaction.

-- name: I1
-- primary keys of mail, due and archive
select cast(m.id as text) as subject, 'is in neither journal' as problem from mail m
where not exists (select 1 from due d where d.id = m.id) and not exists (select 1 from archive a where a.id = m.id)
union all
select cast(d.id as text), 'is in both journals' from due d join archive a on a.id = d.id
union all
select cast(d.id as text), 'is in the due-out journal and there is no such mail' from due d where not exists (select 1 from mail m where m.id = d.id)
union all
select cast(a.id as text), 'is in the archive and there is no such mail' from archive a where not exists (select 1 from mail m where m.id = a.id)
union all
select cast(m.id as text), 'is in the journal of another team or mail server' from mail m left join due d on d.id = m.id left join archive a on a.id = m.id
where d.team <> m.team or d.mail_server <> m.mail_server or a.team <> m.team or a.mail_server <> m.mail_server
limit 1000;

-- name: I2
-- a scan of due and of archive
select cast(id as text) as subject, 'is ' || status || ' and due at no time' as problem from due where status in ('queued', 'deferred') and run_at is null
union all
select cast(id as text), 'is ' || status || ', which waits for a person, and has a due time' from due
where status not in ('queued', 'deferred', 'partially_sent') and run_at is not null
union all
select cast(id as text), 'is in the due-out journal as ' || status from due where status not in ('queued', 'deferred', 'held', 'failed', 'unknown', 'partially_sent')
union all
select cast(id as text), 'is being sent and was not due' from due where owner is not null and run_at is null
union all
select cast(id as text), 'counts ' || attempts || ' attempts and ' || crashes || ' crashes' from due where attempts < 0 or crashes < 0
union all
select cast(id as text), 'is in the archive as ' || status from archive where status not in ('sent', 'cancelled')
union all
select cast(id as text), 'is finished and has no finish time' from archive where done_at is null
limit 1000;

-- name: I3
-- due_owner, primary key of replica
select cast(id as text) as subject, 'is marked and nobody owns it' as problem from due where data_at is not null and owner is null
union all
select cast(d.id as text), 'is owned by replica ' || d.owner || ', which nobody knows any more' from due d
where d.owner is not null and not exists (select 1 from replica r where r.id = d.owner)
limit 1000;

-- name: I3_unrescued
-- due_owner, primary key of replica. A dead replica's mail is rescued by a living one within
-- seconds; where none lives it waits.
-- takes: before, now
select cast(d.id as text) as subject, 'is owned by replica ' || d.owner || ', which is dead, and nobody has rescued it' as problem
from due d join replica r on r.id = d.owner
where r.alive_until < :before and exists (select 1 from replica x where x.alive_until > :now)
limit 1000;

-- name: I7
-- mail_server_default, mail_server_request, mail_request
select 'team "' || team || '"' as subject, 'has ' || count(*) || ' default mail servers' as problem from mail_server where is_default group by team having count(*) > 1
union all
select 'mail server ' || name, 'is a default that is deleted' from mail_server where is_default and delete_time is not null
union all
select 'team "' || team || '"', 'has ' || count(*) || ' mail servers of request_id ' || request_id from mail_server where request_id is not null
group by team, request_id having count(*) > 1
union all
select 'team "' || team || '"', 'has ' || count(*) || ' mails of request_id ' || request_id from mail where request_id is not null
group by team, request_id having count(*) > 1
limit 1000;

-- name: went_back
-- one row; due is small. What was held when the database was found to have gone back in time
-- takes: last_error
select back_at as since, back_why as why, (select count(*) from due where status = 'held' and last_error = :last_error) as held from installation;

-- name: contents
-- the newest first; a scan of content, which is small beside its chunks
select hash, size from content order by touched desc, hash;

-- name: chunks
-- primary key
-- takes: hash
select data from content_chunk where hash = :hash order by n;

-- name: newest
-- primary key, read backwards: ids are ordered by time
-- takes: id, max
select id, recipients, labels, reference, message_id, size_bytes, layout, removed is not null as removed from mail where id < :id order by id desc limit :max;

-- name: raw
-- primary key
-- takes: id
select raw from mail where id = :id;

-- name: totals
-- scans
select (select count(*) from mail) as mails, (select coalesce(sum(size), 0) from content) as bytes;

-- name: waiting
-- a scan of due: what waits for a person, by mail server
select mail_server, team, status, last_error like 'quarantined%' as quarantined, count(*) as n, cast(min(cast(id as text)) as text) as oldest from due
where run_at is null and owner is null group by mail_server, team, status, last_error like 'quarantined%' order by status, mail_server, team;

-- name: late
-- due_ready: what is due and nobody takes, by mail server
-- takes: run_at
select d.mail_server, count(*) as n, min(d.run_at) as since, coalesce(s.status, 'missing') as status, s.delete_time is not null as deleted,
  coalesce(b.failures > 0 and b.version = s.version, false) as suspended
from due d left join mail_server s on s.name = d.mail_server left join breaker b on b.mail_server = d.mail_server
where d.owner is null and d.run_at is not null and d.run_at < :run_at
group by d.mail_server, s.status, s.delete_time, s.version, b.failures, b.version order by d.mail_server;

-- name: suspended
-- breaker has at most a row a mail server
select b.mail_server, b.failures, b.reason, b.retry_at from breaker b join mail_server s on s.name = b.mail_server
where b.failures > 0 and b.version = s.version and s.delete_time is null order by b.mail_server;

-- name: no_default
-- mail_server is small: teams with a mail server that could be their default and is not; the
-- system whether it has any or not
select t.team, (select min(s.name) from mail_server s where s.team = t.team and s.status = 'available' and s.delete_time is null) as candidate
from (select team from mail_server where status = 'available' and delete_time is null union select '') t
where not exists (select 1 from mail_server s where s.team = t.team and s.is_default) order by t.team;

-- name: default_unavailable
-- mail_server is small: defaults that are switched off, and what could take their place
select d.name, d.team, (select min(s.name) from mail_server s where s.team = d.team and s.status = 'available' and s.delete_time is null) as candidate
from mail_server d where d.is_default and d.status <> 'available' and d.delete_time is null order by d.team;

-- name: replicas
-- replica is small, due_owner
select r.id, r.name, r.alive_until, (select count(*) from due d where d.owner = r.id) as owned from replica r order by r.id;

-- name: I8
-- audit_seq, page by page
-- takes: seq
select id, seq, hash, time, actor, action, team, target, reason, cast(detail as text) as detail, salt, commitment, erasure is not null as erased from audit where seq > :seq order by seq limit 1000;

-- name: overdue
-- archive_done, behind the place to which the rule has come
-- takes: name, before
select a.done_at from archive a left join retention r on r.name = :name
where (r.at is null or a.done_at > r.at) and a.done_at < :before order by a.done_at limit 1;
