-- The hot statements for PostgreSQL: whole batches in one statement, the database's clock.

-- name: enqueue
-- mail's primary key and mail_request decide what is new; one statement is one commit for the
-- batch. Bodies come packed in one value: bytea in arrays is the driver's weak spot. v: a
-- replica that is taken for dead owns nothing; its mail waits for whoever claims it. Its token
-- is past the one that the replica goes by, so that none of its writes counts. c: the shared
-- content that the mails need. Whoever removes content waits for this lock, and looks anew for
-- terms behind it; a mail whose content is gone is not written.
-- erased_request: one look for the whole batch, as long as nobody was erased.
-- takes: mails, bodies
with u as materialized (
  select * from json_to_recordset(:mails::json) as x(id uuid, team text, mail_server text, mode text, kind text, priority smallint, reference text,
    sender text, subject text, message_id text, size_bytes bigint, recipients json, labels json, request_id text, fingerprint text, route text,
    utf8 boolean, create_time bigint, run_at bigint, expire_time bigint, layout json, owner bigint, held text, o integer, l integer, terms json,
    batch_id text, resent_from uuid, resend_reason text, caller text, guard text,
    server_version bigint, contents json, request_hash text, trace text)
), c as materialized (
  select hash from content where used and hash = any (array(select decode(x.value, 'hex') from u, json_array_elements_text(u.contents) x)) for key share
), m as (
  insert into mail (id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, labels, request_id,
    fingerprint, route, utf8, create_time, expire_time, raw, layout, batch_id, resent_from, resend_reason, caller, guard, listed, trace)
  select id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, recipients, labels, request_id,
    decode(fingerprint, 'hex'), route, utf8, timestamptz 'epoch' + create_time * interval '1 microsecond',
    timestamptz 'epoch' + expire_time * interval '1 microsecond', substr(:bodies::bytea, o, l), layout, batch_id, resent_from, resend_reason, caller, guard, true, decode(trace, 'hex')
  from u where (server_version is null or exists (select 1 from mail_server s where s.name = u.mail_server and s.version = u.server_version))
    and not exists (select 1 from json_array_elements_text(u.contents) x where decode(x.value, 'hex') not in (select hash from c))
    and (request_hash is null or not exists (select 1 from erased_request)
      or not exists (select 1 from erased_request e where e.hash = decode(u.request_hash, 'hex')))
  order by id
  on conflict do nothing
  returning id
), v as materialized (
  select id from replica where alive_until > 'epoch'
), d as (
  insert into due (id, team, mail_server, priority, kind, batch_id, caller, create_time, status, run_at, resume_at, owner, claim, last_error)
  select id, u.team, u.mail_server, u.priority, u.kind, u.batch_id, u.caller, timestamptz 'epoch' + u.create_time * interval '1 microsecond',
    case when u.held is null then 'queued' else 'held' end,
    case when u.held is null then timestamptz 'epoch' + u.run_at * interval '1 microsecond' end,
    case when u.held is not null then timestamptz 'epoch' + u.run_at * interval '1 microsecond' end,
    case when u.owner in (select id from v) then u.owner end, case when u.owner is null then 0 when u.owner in (select id from v) then 1 else 2 end, coalesce(u.held, '')
  from u join m using (id)
), t as (
  insert into term (term, mail_id)
  select x.value::bigint, u.id from u join m using (id), json_array_elements_text(u.terms) x
  on conflict do nothing
), ch as (
  insert into change (mail_id, status)
  select id, case when u.held is null then 'queued' else 'held' end from u join m using (id)
)
select id from m;

-- name: due_servers (read)
-- due_ready: a loose scan goes from the first mail of a (mail server, team, priority) to the
-- next one's, and from what is due to the next mail server
with recursive p as (
  (select mail_server, team, priority, run_at from due where owner is null and run_at is not null order by mail_server, team, priority, run_at limit 1)
  union all
  select n.* from p cross join lateral (
    (select d.mail_server, d.team, d.priority, d.run_at from due d
      where p.run_at <= now() and d.owner is null and d.run_at is not null and d.mail_server > p.mail_server
      order by d.mail_server, d.team, d.priority, d.run_at limit 1)
    union all
    (select d.mail_server, d.team, d.priority, d.run_at from due d
      where p.run_at > now() and d.owner is null and d.run_at is not null
        and (d.mail_server, d.team, d.priority) > (p.mail_server, p.team, p.priority)
      order by d.mail_server, d.team, d.priority, d.run_at limit 1)) n
)
select p.mail_server from p join mail_server s on s.name = p.mail_server where p.run_at <= now();

-- name: server_versions (read)
-- a handful of rows
-- takes: names
select name, version from mail_server where name in (select n from json_array_elements_text(:names::json) n);

-- name: claim
-- due_ready: a loose scan finds the first mail of each (team, priority) that waits, one probe
-- each. Of the teams that have something due, no more than mails are wanted take part, others
-- each time. Each of their pairs' oldest are locked, every team gets its share of the page by
-- priority, and the page is filled by rank. lead: by how many transactions ours is younger than
-- the one that wrote the row; what a younger one wrote waits for the next claim, so that a
-- mail's changes keep their order. The locking CTE is materialized because a limit with skip
-- locked must not be evaluated twice. any (array): never by a join that reads the table,
-- whatever the statistics said when the plan was made. Nobody claims for a replica that is
-- taken for dead. except: what is damaged.
-- takes: server, above, replica, max, except
{pick}, q as (
  update due set owner = :replica, claim = due.claim + 1 where due.id = any (array(select id from c))
  returning due.id, due.claim, due.run_at, due.attempts, due.crashes, due.possible_duplicate, due.progress, due.data_at
)
select {claimed}, q.possible_duplicate, q.progress, q.data_at,
  coalesce(s.hold_unknown, false) as hold_unknown
from q join mail m on m.id = q.id left join mail_server s on s.name = m.mail_server
where m.id = any (array(select id from q));

-- name: pick (part)
-- of claim and of claimable
with recursive p as (
  (select team, priority, run_at from due where mail_server = :server and owner is null and run_at is not null order by team, priority, run_at limit 1)
  union all
  select n.team, n.priority, n.run_at from p cross join lateral (
    select d.team, d.priority, d.run_at from due d
    where d.mail_server = :server and d.owner is null and d.run_at is not null and (d.team, d.priority) > (p.team, p.priority)
    order by d.team, d.priority, d.run_at limit 1) n
), w as materialized (
  select team, priority from p where run_at <= now() and priority > :above
), t as materialized (
  select team from (select distinct team from w) x
  where exists (select 1 from replica where id = :replica and alive_until > 'epoch') order by random() limit :max
), share as (
  select ceil(:max::integer::numeric / greatest(1, count(*)))::integer as n from t
), l as materialized (
  select x.id, x.team, x.priority, x.run_at, x.lead from w cross join lateral (
    select d.id, d.team, d.priority, d.run_at, age(d.xmin) as lead from due d
    where d.mail_server = :server and d.team = w.team and d.priority = w.priority and d.owner is null and d.run_at is not null and d.run_at <= now()
      and d.id <> all (:except::uuid[])
    order by d.run_at limit (select n from share) for update skip locked) x
  where w.team in (select team from t)
), c as (
  select id from (select id, row_number() over (partition by team order by priority desc, run_at) as rank from l where lead >= 0) r
  where rank <= (select n from share) order by rank, random() limit :max
);

-- name: claimable
-- due_ready, as claim, of which it is the first half
-- takes: server, above, replica, max, except
{pick}
select id from c;

-- name: due_pages
-- none
select pg_relation_size('due') / current_setting('block_size')::bigint;

-- name: claimable_on
-- none: rows are read in their places, because where an index leads to a page that cannot be
-- read the statement fails; case keeps indexes out, which the plan would rather use
-- takes: first, last, server, above, max, except
select id, team, priority, run_at, rank from (
  select id, team, priority, run_at, row_number() over (partition by team order by priority desc, run_at) as rank from due
  where ctid >= :first::tid and ctid < :last::tid
    and case when mail_server = :server and owner is null and run_at <= now() and priority > :above and id <> all (:except::uuid[]) then true else false end
) d where rank <= :max;

-- name: due_servers_on
-- none, as claimable_on
-- takes: first, last
with p as materialized (
  select distinct mail_server from due where ctid >= :first::tid and ctid < :last::tid and case when owner is null and run_at <= now() then true else false end
)
select p.mail_server from p join mail_server s on s.name = p.mail_server;

-- name: owned_on
-- none, as claimable_on
-- takes: first, last, owner
select id, claim from due where ctid >= :first::tid and ctid < :last::tid and case when owner = :owner then true else false end;

-- name: ownerless_on
-- none, as claimable_on
-- takes: first, last
with p as materialized (
  select id, owner from due where ctid >= :first::tid and ctid < :last::tid and case when owner is null then false else true end
)
select id, owner from p where not exists (select 1 from replica r where r.id = p.owner and r.alive_until > 'epoch') order by id;

-- name: claim_these
-- due's primary key; lead and any (array) as in claim, case as in settle
-- takes: ids, server, replica
with l as materialized (
  select d.id, age(d.xmin) as lead from due d
  where d.id = any (array(select value::uuid from json_array_elements_text(:ids::json)))
    and case when d.mail_server = :server and d.owner is null and d.run_at <= now() and exists (select 1 from replica where id = :replica and alive_until > 'epoch') then true else false end
  for update skip locked
), q as (
  update due set owner = :replica, claim = due.claim + 1 where due.id = any (array(select id from l where lead >= 0))
  returning due.id, due.claim, due.run_at, due.attempts, due.crashes, due.possible_duplicate, due.progress, due.data_at
)
select {claimed}, q.possible_duplicate, q.progress, q.data_at,
  coalesce(s.hold_unknown, false) as hold_unknown
from q join mail m on m.id = q.id left join mail_server s on s.name = m.mail_server
where m.id = any (array(select id from q));

-- name: settle
-- due's primary key. One statement for marks, finished mails and the rest, all of one owner; it
-- returns what is not ours any more, most often nothing. coalesce: not by due_owner, whose dead
-- entries are many and which the planner takes for any condition that null does not meet. case:
-- a condition that the planner expects half of the rows to meet, not one in two hundred, for
-- which it would compare every row of one list with every row of the other. claim: after
-- progress the next transaction goes under a token of its own, so that this statement,
-- delivered late, does not take its mark.
-- takes: finished, changed, marks, owner
with f as materialized (
  select * from json_to_recordset(:finished::json) as f(id uuid, c bigint, status text, attempts smallint, progress json, dup boolean, err text)
), x as materialized (
  select * from json_to_recordset(:changed::json) as x(id uuid, c bigint, k text, status text, run_at bigint, attempts smallint, crashes smallint, progress json, dup boolean, err text)
), m as materialized (
  select * from json_to_recordset(:marks::json) as m(id uuid, c bigint)
), mk as (
  update due q set data_at = now() from m
  where q.id = any (array(select id from m)) and q.id = m.id and case when q.owner = :owner and q.claim = m.c then true else false end
    and case when (select exists (select 1 from operation_brake)) then not braked(q.id, q.team, q.mail_server, q.status) else true end
  returning q.id
), up as (
  update due q set status = case when x.k in ('progress', 'begin') then coalesce(x.status, q.status) else x.status end,
    run_at = case when x.k in ('progress', 'begin') then q.run_at else timestamptz 'epoch' + x.run_at * interval '1 microsecond' end,
    owner = case when x.k in ('progress', 'begin') then q.owner end, claim = case when x.k = 'progress' then q.claim + 1 else q.claim end, data_at = case when x.k = 'begin' then q.data_at end,
    crashes = case x.k when 'progress' then q.crashes else coalesce(x.crashes, 0) end, begun = case x.k when 'progress' then q.begun else x.k = 'begin' end,
    attempts = case when x.k in ('begin', 'unreadable') then q.attempts else x.attempts end, progress = case when x.k in ('begin', 'unreadable') then q.progress else x.progress end,
    possible_duplicate = case when x.k in ('begin', 'unreadable') then q.possible_duplicate else x.dup end, last_error = case when x.k = 'begin' then q.last_error else x.err end
  from x where q.id = any (array(select id from x)) and q.id = x.id and case when q.owner = :owner and q.claim = x.c then true else false end
  returning q.id, x.k, q.status
), de as (
  delete from due q using f
  where q.id = any (array(select id from f)) and q.id = f.id and case when q.owner = :owner and q.claim = f.c then true else false end
  returning q.id, q.team, q.mail_server, q.priority, q.kind, q.batch_id, q.caller, q.create_time, q.claim, f.status, f.attempts, f.dup, f.err, f.progress
), ar as (
  insert into archive (id, team, mail_server, priority, kind, batch_id, caller, create_time, done_at, status, attempts, possible_duplicate, last_error, result, claim)
  select id, team, mail_server, priority, kind, batch_id, caller, create_time, now(), status, attempts, dup, err, progress, claim from de
  returning id, status
), ch as (
  insert into change (mail_id, status) select id, status from up where k not in ('progress', 'begin') union all select id, status from ar
)
select w.id from (select id from f union all select id from x union all select id from m) w
where not exists (select 1 from (select id from mk union all select id from up union all select id from ar) d where d.id = w.id);

-- name: upload_get (look)
-- primary key; case: not by upload_expire, which holds nearly all that is asked for
-- takes: ids, team, expire_time
select id, team, filename, content_type, sha256, size_bytes, hash, content_size, expire_time
from upload where id = any (array(select value::uuid from json_array_elements_text(:ids::json))) and team = :team and case when expire_time > :expire_time then true else false end;

-- name: upload_use
-- primary key; case as in upload_get
-- takes: until, ids
update upload set expire_time = :until where id = any (array(select value::uuid from json_array_elements_text(:ids::json))) and case when expire_time < :until then true else false end;

-- name: modify_servers (read)
-- primary key
-- takes: names
select {server}
from mail_server where name = any (array(select value from json_array_elements_text(:names::json)));

-- name: settled_under
-- primary keys; a claim that ended without its owner's word has a higher number than the owner
-- knows. any (array) and case as in settle. o: progress, whose owner keeps the mail
-- takes: results
with x as materialized (
  select * from json_to_recordset(:results::json) as x(id uuid, c bigint, o bigint)
)
select d.id from due d join x on d.id = x.id
where d.id = any (array(select id from x)) and case when d.owner is not distinct from x.o and d.claim = x.c and d.data_at is null then true else false end
union all
select a.id from archive a join x on a.id = x.id
where a.id = any (array(select id from x)) and case when x.o is null and a.claim = x.c then true else false end;

-- name: modify_lock
-- primary keys. Locked in the order of ids, so that two of these never wait for each other in a
-- circle; lead: by how many transactions ours is younger than the one that wrote the row.
-- lateral and offset: one probe for each row, whatever the statistics said when the plan was
-- made.
-- takes: ids
with j as materialized (
  select value::uuid as id from json_array_elements_text(:ids::json)
)
select {mail}, d.status, d.run_at, d.resume_at, d.attempts, d.owner,
  d.possible_duplicate, d.progress, d.last_error,
  age(d.xmin) as lead
from due d cross join lateral (select * from mail where mail.id = d.id offset 0) m
where d.id = any (array(select id from j)) and d.owner is null
order by d.id for update of d;

-- name: modify_lock_owned
-- primary keys, as modify_lock. skip locked: whoever writes to what a replica has may wait for
-- us. case as in settle
-- takes: ids
with j as materialized (
  select value::uuid as id from json_array_elements_text(:ids::json)
)
select {mail}, d.status, d.run_at, d.resume_at, d.attempts, d.owner,
  d.possible_duplicate, d.progress, d.last_error,
  age(d.xmin) as lead
from due d cross join lateral (select * from mail where mail.id = d.id offset 0) m
where d.id = any (array(select id from j)) and case when d.owner is not null and d.data_at is null then true else false end
order by d.id for update of d skip locked;

-- name: modify
-- due's primary key; crashes: a person has looked at it, so a quarantine begins anew; case as
-- in settle. Whoever had the mail has it no more: its token ends, by more than the writes of
-- one attempt raise it.
-- takes: changes
with x as materialized (
  select * from json_to_recordset(:changes::json) as x(id uuid, done boolean, status text, run_at bigint, resume_at bigint, attempts smallint, progress json,
    dup boolean, err text)
), up as (
  update due d set crashes = 0, begun = false, owner = null, claim = case when d.owner is null then d.claim else d.claim + 1000 end, status = x.status, run_at = timestamptz 'epoch' + x.run_at * interval '1 microsecond',
    resume_at = timestamptz 'epoch' + x.resume_at * interval '1 microsecond', attempts = x.attempts, progress = x.progress, possible_duplicate = x.dup,
    last_error = x.err
  from x where d.id = any (array(select id from x where not done)) and d.id = x.id and case when d.owner is null or d.data_at is null then true else false end
  returning d.id, d.status
), de as (
  delete from due d where d.id = any (array(select id from x where done)) and case when d.owner is null or d.data_at is null then true else false end
  returning d.id, d.team, d.mail_server, d.priority, d.kind, d.batch_id, d.caller, d.create_time, case when d.owner is null then d.claim else d.claim + 1000 end as claim
), ar as (
  insert into archive (id, team, mail_server, priority, kind, batch_id, caller, create_time, done_at, status, attempts, possible_duplicate, last_error, result, claim)
  select de.id, de.team, de.mail_server, de.priority, de.kind, de.batch_id, de.caller, de.create_time, now(), x.status, x.attempts, x.dup, x.err, x.progress, de.claim from de join x on x.id = de.id
  returning id, status
), ch as (
  insert into change (mail_id, status) select id, status from up union all select id, status from ar
)
select (select count(*) from up) + (select count(*) from ar);

-- name: replica_register (lease)
-- primary key
-- takes: name, ttl
insert into replica (name, alive_until, asks) values (:name, now() + :ttl * interval '1 microsecond', 1) returning id;

-- name: replica_renew (lease)
-- primary key; epoch = somebody has taken it for dead
-- takes: ttl, id
update replica set alive_until = now() + :ttl * interval '1 microsecond' where id = :id and alive_until > 'epoch';

-- name: replica_bury
-- a handful of rows; nobody buries itself
-- takes: id
update replica set alive_until = 'epoch' where alive_until < now() and alive_until > 'epoch' and id <> :id;

-- name: owners_gone
-- due_owner: a loose scan over those who own mail; whoever is not known to live is gone
with recursive o as (
  (select owner from due where owner is not null order by owner limit 1)
  union all
  select (select d.owner from due d where d.owner > o.owner order by d.owner limit 1) from o where o.owner is not null
)
select owner from o where owner is not null and not exists (select 1 from replica r where r.id = o.owner and r.alive_until > 'epoch');

-- name: owned_by
-- due_owner
-- takes: owners
select id from due where owner = any (array(select value::bigint from json_array_elements_text(:owners::json))) order by id;

-- name: recover_unmarked
-- due's primary key; case as in settle
-- takes: ids, gone
with r as (
  update due set owner = null, claim = claim + 1, crashes = greatest(crashes, 1)
  where id = any (array(select value::uuid from json_array_elements_text(:ids::json)))
    and case when data_at is null and crashes < 2 and owner = any (array(select value::bigint from json_array_elements_text(:gone::json))) then true else false end
  returning id, status
)
insert into change (mail_id, status) select id, status from r;

-- name: recover_marked
-- due's primary key; suspects as well: when they are tried again is the engine's rule; case as
-- in settle
-- takes: ids, gone, me, max
with c as materialized (
  select id from due where id = any (array(select value::uuid from json_array_elements_text(:ids::json)))
    and case when (data_at is not null or crashes > 1) and owner = any (array(select value::bigint from json_array_elements_text(:gone::json))) then true else false end
    and exists (select 1 from replica where id = :me and alive_until > 'epoch')
  limit :max for update skip locked
), q as (
  update due set owner = :me, claim = due.claim + 1, crashes = greatest(crashes, 1) where due.id = any (array(select id from c))
  returning due.id, due.claim, due.run_at, due.attempts, due.crashes, due.begun, due.possible_duplicate, due.progress, due.data_at
)
select {claimed}, q.begun, q.possible_duplicate, q.progress, q.data_at,
  coalesce(s.hold_unknown, false) as hold_unknown
from q join mail m on m.id = q.id left join mail_server s on s.name = m.mail_server
where m.id = any (array(select id from q));

-- name: take_back
-- due's primary key; case as in settle. begun: somebody died of it, so what becomes of it is
-- the engine's rule
-- takes: lost, owner
with x as materialized (
  select * from json_to_recordset(:lost::json) as x(id uuid, c bigint)
), u as (
  update due q set owner = null, claim = q.claim + 1 from x
  where q.id = any (array(select id from x)) and q.id = x.id and case when q.owner = :owner and q.claim = x.c and q.data_at is null and not q.begun then true else false end
  returning q.id, q.status
)
insert into change (mail_id, status) select id, status from u;

-- name: take_back_marked
-- due's primary key; case as in settle
-- takes: lost, owner
with x as materialized (
  select * from json_to_recordset(:lost::json) as x(id uuid, c bigint)
), c as materialized (
  select d.id from due d join x on d.id = x.id
  where d.id = any (array(select id from x)) and case when d.owner = :owner and d.claim = x.c and (d.data_at is not null or d.begun) then true else false end
  for update of d
), q as (
  update due set claim = due.claim + 1 where due.id = any (array(select id from c))
  returning due.id, due.claim, due.run_at, due.attempts, due.crashes, due.begun, due.possible_duplicate, due.progress, due.data_at
)
select {claimed}, q.begun, q.possible_duplicate, q.progress, q.data_at,
  coalesce(s.hold_unknown, false) as hold_unknown
from q join mail m on m.id = q.id left join mail_server s on s.name = m.mail_server
where m.id = any (array(select id from q));

-- name: replica_end
-- primary key
-- takes: id
update replica set alive_until = 'epoch' where id = :id;

-- name: replica_forget
-- due_owner
delete from replica where alive_until = 'epoch' and not exists (select 1 from due where owner = replica.id);

-- name: clock (read)
-- none; not now(), which stands still in a transaction
select clock_timestamp();

-- name: breaker_lock
-- primary key
-- takes: mail_server
select mail_server, version, failures, reason, retry_at, probe_until, healed_at, success_at, failure_at, last_failure from breaker where mail_server = :mail_server
for update;

-- name: quota_lock
-- primary key
-- takes: mail_server
select tokens, refilled_at, day::text, day_used from quota where mail_server = :mail_server for update;

-- name: allowance_lock
-- primary key
-- takes: key
select used from allowance where key = :key for update;

-- name: slot_take
-- primary key; free is what nobody alive has, and what the asking replica has and does not hold
-- takes: server, replica, settled, held, token, limit
with busy as materialized (
  select x.n from connection_slot x join replica r on r.id = x.replica and r.alive_until > now()
  where x.mail_server = :server and not (x.replica = :replica and x.token < :settled and x.n <> all(:held::integer[])))
insert into connection_slot as c (mail_server, n, replica, token)
select :server, g.n, :replica, :token from generate_series(1, :limit::integer) g(n)
where g.n not in (select n from busy) and (select count(*) from busy) < :limit
order by g.n limit 1
on conflict (mail_server, n) do update set replica = excluded.replica, token = excluded.token
where not exists (select 1 from replica r where r.id = c.replica and r.alive_until > now())
  or c.replica = excluded.replica and c.token < :settled and c.n <> all(:held::integer[])
returning n;

-- name: slot_free (read)
-- primary key
-- takes: server, replica, settled, held, limit
with busy as materialized (
  select x.n from connection_slot x join replica r on r.id = x.replica and r.alive_until > now()
  where x.mail_server = :server and not (x.replica = :replica and x.token < :settled and x.n <> all(:held::integer[])))
select (select count(*) from busy) < :limit and exists (select 1 from generate_series(1, :limit::integer) g(n) where g.n not in (select n from busy));

-- name: slot_give
-- primary key
-- takes: mail_server, n, replica, token
delete from connection_slot where mail_server = :mail_server and n = :n and replica = :replica and token = :token;

-- name: slot_drop
-- a handful of rows
-- takes: replica, settled, servers, numbers
delete from connection_slot c where c.replica = :replica and c.token < :settled
  and not exists (select 1 from unnest(:servers::text[], :numbers::integer[]) h(mail_server, n) where h.mail_server = c.mail_server and h.n = c.n);

-- name: slot_keep
-- connection_slot's primary key decides what is new; a slot that somebody alive has stays
-- theirs
-- takes: replica, servers, numbers, tokens
insert into connection_slot as c (mail_server, n, replica, token)
select h.mail_server, h.n, :replica, h.token from unnest(:servers::text[], :numbers::integer[], :tokens::bigint[]) h(mail_server, n, token) order by 1, 2
on conflict (mail_server, n) do update set replica = excluded.replica, token = excluded.token
where c.replica <> excluded.replica and not exists (select 1 from replica r where r.id = c.replica and r.alive_until > now());

-- name: slot_mine
-- a handful of rows
-- takes: replica
select mail_server, n, token from connection_slot where replica = :replica;

-- name: replica_release
-- due's primary key; an end in good order is no death: what was counted when a suspect was
-- begun is taken back; case as in settle
-- takes: ids, owner
with r as (
  update due set owner = null, claim = claim + 1,
    crashes = crashes - case when begun then 1 else 0 end, begun = false
  where id = any (array(select value::uuid from json_array_elements_text(:ids::json))) and case when owner = :owner and data_at is null then true else false end
  returning id, status
)
insert into change (mail_id, status) select id, status from r;

-- name: server_hold
-- one of two: due_ready, or due_server where most of the mail server's mail waits. lead: by how
-- many transactions ours is younger than the one that wrote the row; what a younger one wrote
-- is left to the next hold, so that a mail's changes keep their order
-- takes: mail_server, last_error
with l as materialized (
  select id, age(xmin) as lead from due where mail_server = :mail_server and owner is null and run_at is not null for update
), h as (
  update due set status = 'held', resume_at = run_at, run_at = null, last_error = :last_error
  where due.id = any (array(select id from l where lead >= 0)) returning id, team
), c as (
  insert into change (mail_id, status) select id, 'held' from h
)
select team, count(*) as mails from h group by team order by team;

-- name: change_horizon (look)
-- one row
select generation, pg_snapshot_xmin(pg_current_snapshot())::text::bigint as horizon from change_forgotten;

-- name: change_lag (look)
-- primary key: the first change that the horizon hides
select coalesce((select extract(epoch from clock_timestamp() - time) * 1000000 from change
  where xid >= (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint) order by xid, seq limit 1), 0)::bigint;

-- name: change_read (look)
-- primary key
-- takes: xid, seq, horizon, max
select xid, seq, mail_id, status, time from change where (xid, seq) > (:xid, :seq) and xid < :horizon order by xid, seq limit :max;

-- name: change_forget
-- primary key; then each row where it lies, which never moves: a join would read the whole
-- table
-- takes: max, age
with old as materialized (
  select ctid as place, time from change order by xid, seq limit :max
), gone as (
  delete from change where ctid = any (array(select place from old where time < now() - :age * interval '1 microsecond')) returning xid, seq
), last as (
  select xid, seq from gone order by xid desc, seq desc limit 1
), note as (
  update change_forgotten f set xid = last.xid, seq = last.seq from last
)
select count(*) from gone;

-- name: batch_count (look)
-- due_owner, and the primary key of count_batch; count_delta has a handful of rows. One
-- statement, so that all of it is of one moment. What is marked is counted as what it would be
-- without its owner, so it comes once more by itself.
-- takes: batch_id, team, caller
select status, sum(n)::bigint as mails, sum(case when waiting then n else 0 end)::bigint as waiting, sum(case when doubtful then n else 0 end)::bigint as doubtful,
  min(first) as first, max(last) as last, false as marked
from (
  select status, waiting, doubtful, n, first, last from count_batch where batch_id = :batch_id and team = :team and (:caller::text = '' or caller = :caller)
  union all
  select status, second >= 0 and status not in ('sent', 'cancelled'), doubtful, n, first, last from count_delta
  where batch_id = :batch_id and team = :team and (:caller::text = '' or caller = :caller)) x
group by 1
union all
select d.status, count(*), 0, 0, null, null, true
from due d cross join lateral (select batch_id, caller from mail where mail.id = d.id offset 0) m
where d.owner is not null and case when d.data_at is not null and d.team = :team then true else false end and m.batch_id = :batch_id and (:caller::text = '' or m.caller = :caller)
group by 1;

-- name: batch_count_rows (look)
-- mail_batch, then the primary keys of due and archive: while the counters have not counted
-- what was there before them. One statement, so that a mail that moves meanwhile is counted
-- once
-- takes: batch_id, team, caller
with b as (select id, create_time from mail where batch_id = :batch_id and team = :team and (:caller::text = '' or caller = :caller))
select case when d.owner is not null and d.data_at is not null then 'sending' else d.status end as status, count(*) as mails,
  count(*) filter (where d.owner is not null or d.run_at is not null) as waiting, count(*) filter (where d.possible_duplicate) as doubtful,
  min(b.create_time) as first, null::timestamptz as last
from b join due d on d.id = b.id group by 1
union all
select a.status, count(*), 0, count(*) filter (where a.possible_duplicate), min(b.create_time), max(a.done_at)
from b join archive a on a.id = b.id group by 1;

-- name: count_lock
-- none; one transaction at a time writes totals. The key is any number that nothing else locks.
select pg_try_advisory_xact_lock(4713226302);

-- name: count_fold
-- primary keys of the totals; what is appended is read where it lies. What is past is all due,
-- so the second in which it became due is not kept.
-- takes: max
with page as materialized (
  select ctid as place from count_delta limit :max
), gone as (
  delete from count_delta where ctid = any (array(select place from page)) returning *
), q as (
  insert into count_queue as t (team, mail_server, priority, kind, status, second, n)
  select team, mail_server, priority, kind, status, case when status <> 'sent' and second between 1 and extract(epoch from now()) then 0 else second end, sum(n)
  from gone where status <> 'cancelled' and not (status = 'sent' and second = 0) group by 1, 2, 3, 4, 5, 6 having sum(n) <> 0 order by 1, 2, 3, 4, 5, 6
  on conflict (team, mail_server, priority, kind, status, second) do update set n = t.n + excluded.n
), b as (
  insert into count_batch as t (batch_id, team, caller, status, waiting, doubtful, n, first, last)
  select batch_id, team, caller, status, second >= 0 and status not in ('sent', 'cancelled'), doubtful, sum(n), min(first), max(last)
  from gone where batch_id is not null group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6
  on conflict (batch_id, team, caller, status, waiting, doubtful) do update
    set n = t.n + excluded.n, first = least(t.first, excluded.first), last = greatest(t.last, excluded.last)
)
select count(*) as n, coalesce(json_agg(distinct batch_id) filter (where batch_id is not null), '[]')::text as batches from gone;

-- name: count_fold_batches
-- primary key; what a batch has none of any more
-- takes: batches
delete from count_batch where n = 0 and batch_id in (select value from json_array_elements_text(:batches::json));

-- name: count_ripen
-- a handful of rows: one for each mail server, kind and status, and for each second of what is
-- due later or was sent in the last minutes
with ripe as (
  delete from count_queue where status <> 'sent' and second between 1 and extract(epoch from now()) or status = 'sent' and second < extract(epoch from now()) - 120 returning *
)
insert into count_queue as t (team, mail_server, priority, kind, status, second, n)
select team, mail_server, priority, kind, status, 0, sum(n) from ripe where status <> 'sent' group by 1, 2, 3, 4, 5 order by 1, 2, 3, 4, 5
on conflict (team, mail_server, priority, kind, status, second) do update set n = t.n + excluded.n;

-- name: lanes (look)
-- due_ready: a loose scan finds the first mail of each (mail server, team, priority) that waits
with recursive p as (
  (select mail_server, team, priority, run_at from due where owner is null and run_at is not null order by mail_server, team, priority, run_at limit 1)
  union all
  select n.* from p cross join lateral (
    select d.mail_server, d.team, d.priority, d.run_at from due d
    where d.owner is null and d.run_at is not null and (d.mail_server, d.team, d.priority) > (p.mail_server, p.team, p.priority)
    order by d.mail_server, d.team, d.priority, d.run_at limit 1) n
)
select mail_server, team, priority, run_at from p;

-- name: content_collect
-- content_unused; nothing that an upload still needs, and three days after the last use, so
-- that nobody is about to refer to it
-- takes: touched
delete from content c where not c.used and c.touched < :touched and not exists (select 1 from upload u where u.hash = c.hash) returning c.hash;

-- name: mail_raw (look)
-- primary key; a mail of a team that the caller does not see is not read at all
-- takes: bytes, id, all, teams, caller
select length(m.raw) as size, substr(m.raw, 1, :bytes) as first, m.layout, m.removed from mail m where m.id = :id and (:all::bool or m.team in (select value from json_array_elements_text(:teams::json))) and (:caller::text = '' or m.caller = :caller);

-- name: mail_copy (look)
-- primary key; as mail_raw
-- takes: id, all, teams, caller
select id, team, mail_server, mode, kind, priority, reference, sender, subject, message_id, size_bytes, utf8, route, recipients, labels, raw, layout, removed
from mail where id = :id and (:all::bool or team in (select value from json_array_elements_text(:teams::json))) and (:caller::text = '' or caller = :caller);

-- name: move_target
-- primary key; no mail goes to a mail server that is being deleted or switched off
-- takes: name
select name from mail_server where name = :name and delete_time is null and status = 'available' for share;

-- name: move_due
-- primary key
-- takes: server, ids
update due set mail_server = :server where id = any (array(select value::uuid from json_array_elements_text(:ids::json)));

-- name: move_mail
-- primary key
-- takes: server, ids
update mail set mail_server = :server where id = any (array(select value::uuid from json_array_elements_text(:ids::json)));

-- name: unguard
-- primary key
-- takes: ids
update mail set guard = null where id = any (array(select value::uuid from json_array_elements_text(:ids::json)));

-- name: audit_rows (look)
-- primary key, read backwards; the log is as long as people's acts are many
-- takes: before, all, teams, any_team, team, actor, action, target, since, until, max
select id, seq, hash, time, actor, action, team, target, reason, cast(detail as text) as detail from audit
where id < :before::bigint and (:all::bool or team in (select value from json_array_elements_text(:teams::json))) and (:any_team::bool or team = :team)
  and (:actor::text = '' or actor = :actor::text) and (:action::text = '' or action = :action::text) and (:target::text = '' or target = :target::text)
  and (:since::timestamptz is null or time >= :since::timestamptz) and (:until::timestamptz is null or time < :until::timestamptz)
order by id desc limit :max;

-- name: audit_lock
-- none; one transaction at a time links rows. The key is any number that nothing else locks.
select pg_advisory_xact_lock(4713226301) is not null;

-- name: audit_try_lock
-- none; as audit_lock
select pg_try_advisory_xact_lock(4713226301);

-- name: access_lock
-- one row; two first tokens at once come one behind the other
select access_on from installation for update;

-- name: purge_page (look)
-- archive_done, then the primary key of mail one by one; all but id and done_at is null for
-- mail of another kind
-- takes: at, id, before, max, kind
select c.id, c.done_at, m.team, m.reference, m.message_id, m.recipients, m.labels, m.layout, m.removed, octet_length(m.raw) as bytes
from (select id, done_at from archive where (done_at, id) > (:at, :id) and done_at < :before order by done_at, id limit :max) c
left join lateral (select * from mail x where x.id = c.id and x.kind = :kind offset 0) m on true order by c.done_at, c.id;

-- name: rule_next (look)
-- archive_done
-- takes: at, id, before
select done_at from archive where (done_at, id) > (:at, :id) and done_at < :before order by done_at, id limit 1;

-- name: purge_terms
-- primary key, row by row
-- takes: terms
delete from term where ctid = any (array(
  select z.place from (select (x.value ->> 0)::bigint as term, (x.value ->> 1)::uuid as id from json_array_elements(:terms::json) x) y
  cross join lateral (select t.ctid as place from term t where t.term = y.term and t.mail_id = y.id offset 0) z));

-- name: walk_terms
-- none is looked up
-- takes: terms
insert into term (term, mail_id) select (x.value ->> 0)::bigint, (x.value ->> 1)::uuid from json_array_elements(:terms::json) x on conflict do nothing;

-- name: unlisted_mails
-- mail_unlisted
-- takes: ids
select id, layout, coalesce(removed, '') as removed from mail
where id = any (array(select value::uuid from json_array_elements_text(:ids::json))) and layout is not null and not listed;

-- name: mail_listed
-- primary key
-- takes: ids
update mail set listed = true where id = any (array(select value::uuid from json_array_elements_text(:ids::json)));

-- name: content_lock
-- primary key; against the lock of enqueue: behind it all mail is there that needs the content
-- takes: hash
select hash from content where hash = :hash for update;

-- name: database_bytes (look)
-- none
select pg_database_size(current_database());

-- name: holder_lock
-- primary key; what removes waits until this transaction has ended
select name from retention where name = 'holder' for update;

-- name: hold_get
-- primary key
-- takes: id, all, teams
select id, team, mail_id, reference, reason, placed_by, place_time, lifted_by, lift_reason, lift_time from legal_hold
where id = :id and (:all::bool or team in (select value from json_array_elements_text(:teams::json)));

-- name: hold_list (look)
-- a handful of rows
-- takes: after, all, teams, any_team, team, lifted, max
select id, team, mail_id, reference, reason, placed_by, place_time, lifted_by, lift_reason, lift_time from legal_hold
where id > :after and (:all::bool or team in (select value from json_array_elements_text(:teams::json))) and (:any_team::bool or team = :team)
  and (:lifted::bool or lift_time is null) order by id limit :max;

-- name: purge_free
-- primary key of mail, then legal_hold_open
-- takes: ids
select m.id from mail m where m.id = any (array(select value::uuid from json_array_elements_text(:ids::json))) and not exists (
  select 1 from legal_hold h where h.lift_time is null and h.team = m.team
    and case when h.mail_id is not null then h.mail_id = m.id when h.reference is not null then h.reference = m.reference else true end);

-- name: purge_archive
-- primary key
-- takes: ids
delete from archive where id = any (array(select value::uuid from json_array_elements_text(:ids::json)));

-- name: purge_requests
-- erased_request_mail
-- takes: ids
delete from erased_request where mail_id = any (array(select value::uuid from json_array_elements_text(:ids::json)));

-- name: purge_mail
-- primary key; nothing that is in the due-out journal, whatever the list says
-- takes: ids
delete from mail where id = any (array(select value::uuid from json_array_elements_text(:ids::json))) and case when exists (select 1 from due d where d.id = mail.id) then false else true end;

-- name: purge_body
-- primary key; as purge_mail
-- takes: removed, ids
update mail set removed = :removed, raw = '', layout = null where id = any (array(select value::uuid from json_array_elements_text(:ids::json)))
  and removed is distinct from 'erased' and case when exists (select 1 from due d where d.id = mail.id) then false else true end;

-- name: purge_attachments
-- primary key; as purge_mail. The layout stays: it has the sums of what was removed
-- takes: removed, ids
update mail set removed = :removed where id = any (array(select value::uuid from json_array_elements_text(:ids::json))) and removed is null and case when exists (select 1 from due d where d.id = mail.id) then false else true end;

-- name: operation_take
-- operation_running: the oldest that no living replica is at; those that only count last, and
--   those with a fault, which are as old as that
-- takes: replica
update operation set owner = :replica where id = (
  select o.id from operation o
  where o.state = 'running' and (o.owner is null or o.owner = :replica or not exists (select 1 from replica r where r.id = o.owner and r.alive_until > 'epoch'))
    and exists (select 1 from replica where id = :replica and alive_until > 'epoch')
  order by o.dry or o.error <> '', case when o.error = '' then o.create_time else o.update_time end, o.id limit 1 for update skip locked)
returning id, action, scope, filter, request, actor, reason, dry, bound, state, owner, after, pending, total, matched, changed, failed, failures, error, create_time, update_time, end_time;

-- name: operation_lock
-- primary key
-- takes: id, replica
select id, action, scope, filter, request, actor, reason, dry, bound, state, owner, after, pending, total, matched, changed, failed, failures, error, create_time, update_time, end_time from operation where id = :id and case when state = 'running' and owner = :replica then true else false end
  and exists (select 1 from replica where id = :replica and alive_until > 'epoch') for update;

-- name: operation_stop
-- primary key
-- takes: now, id
update operation set state = 'stopped', request = '{}', end_time = :now, update_time = :now where id = :id and case when state = 'running' then true else false end returning id;

-- name: operate_lock
-- primary keys; as modify_lock and modify_lock_owned, of mail only what decides
-- takes: ids
with j as materialized (
  select value::uuid as id from json_array_elements_text(:ids::json)
)
select d.id, d.team, d.mail_server, m.kind, m.size_bytes, m.recipients, m.caller, m.guard, m.expire_time, m.create_time,
  d.status, d.run_at, d.resume_at, d.attempts, d.owner, d.possible_duplicate, d.progress, d.last_error, age(d.xmin) as lead
from due d cross join lateral (select kind, size_bytes, recipients, caller, guard, expire_time, create_time from mail where mail.id = d.id offset 0) m
where d.id = any (array(select id from j)) and case when d.owner is null or d.data_at is null then true else false end
order by d.id for update of d skip locked;

-- name: operate_left
-- primary key
-- takes: ids
select id, data_at is not null as marked from due where id = any (array(select value::uuid from json_array_elements_text(:ids::json)));
