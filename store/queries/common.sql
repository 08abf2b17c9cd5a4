-- Statements that both databases take as they stand. Each names the index that serves it. In
-- brackets stands which connections run it outside of transactions: (read) the engine's reading
-- ones, (look) those for what people look at, (lease) the lease's own. "takes" are the
-- parameters, in the order in which the code gives them. In braces stand the lists of columns
-- of statements.go.

-- name: server_insert
-- primary key; the partial unique indexes refuse a second default and a reused request_id
-- takes: name, team, display_name, type, mode, status, is_default, sender, smtp, password,
--   limits, annotations, hold_unknown, pause_until, fallback, request_id, fingerprint,
--   create_time, update_time, allowed_headers, dkim
insert into mail_server (name, team, display_name, type, mode, status, is_default, sender, smtp, password, limits, annotations, hold_unknown,
  pause_until, fallback, version, request_id, fingerprint, create_time, update_time, allowed_headers, dkim)
values (:name, :team, :display_name, :type, :mode, :status, :is_default, :sender, :smtp, :password, :limits, :annotations, :hold_unknown, :pause_until, :fallback, 1, :request_id, :fingerprint, :create_time, :update_time, :allowed_headers, :dkim);

-- name: server_get (read)
-- primary key
-- takes: name
select {server}
from mail_server where name = :name;

-- name: server_by_request (read)
-- mail_server_request
-- takes: team, request_id
select {server}
from mail_server where team = :team and request_id = :request_id;

-- name: server_default (read)
-- mail_server_default
-- takes: team
select {server}
from mail_server where team = :team and is_default;

-- name: server_update
-- primary key
-- takes: display_name, mode, status, is_default, sender, smtp, password, limits, annotations,
--   hold_unknown, pause_until, fallback, version, update_time, delete_time, allowed_headers,
--   dkim, name
update mail_server set display_name = :display_name, mode = :mode, status = :status, is_default = :is_default, sender = :sender, smtp = :smtp, password = :password, limits = :limits, annotations = :annotations,
  hold_unknown = :hold_unknown, pause_until = :pause_until, fallback = :fallback, version = :version, update_time = :update_time, delete_time = :delete_time, allowed_headers = :allowed_headers, dkim = :dkim
where name = :name;

-- name: server_fallback_of
-- mail_server_fallback
-- takes: fallback
select name from mail_server where fallback = :fallback order by name;

-- name: server_clear_default
-- mail_server_default
-- takes: is_default, update_time, team, name
update mail_server set is_default = :is_default, version = version + 1, update_time = :update_time where team = :team and is_default and name <> :name;

-- name: server_pending (read)
-- due_server; failed and unknown mail waits for a person, not for the mail server
-- takes: mail_server
select count(*) from due where mail_server = :mail_server and status not in ('failed', 'unknown') and not (status = 'partially_sent' and run_at is null);

-- name: audit_insert
-- none needed
-- takes: time, actor, action, team, target, reason, detail
insert into audit (time, actor, action, team, target, reason, detail) values (:time, :actor, :action, :team, :target, :reason, :detail);

-- name: audit_head
-- audit_seq, its end
select seq, hash from audit where seq is not null order by seq desc limit 1;

-- name: audit_unlinked
-- one of two: audit_unlinked, or audit_seq, which has those without a number too
select id, time, actor, action, team, target, reason, cast(detail as text) as detail from audit where seq is null order by id limit 500;

-- name: audit_link
-- primary key
-- takes: seq, hash, salt, commitment, id
update audit set seq = :seq, hash = :hash, salt = :salt, commitment = :commitment where id = :id;

-- name: audit_redact
-- primary key
-- takes: actor, action, team, target, reason, detail, erasure, id
update audit set actor = :actor, action = :action, team = :team, target = :target, reason = :reason, detail = :detail, salt = null, erasure = :erasure where id = :id;

-- name: erasure_insert
-- primary key
-- takes: id, hash, actor, time, mails, first_time, last_time
insert into erasure (id, hash, actor, time, mails, first_time, last_time) values (:id, :hash, :actor, :time, :mails, :first_time, :last_time);

-- name: erasure_known (look)
-- erasure_hash
-- takes: hash
select time, mails, first_time, last_time from erasure where hash = :hash order by time limit 1;

-- name: erase_found (look)
-- primary keys of term, mail and due; mails that have a term and lie behind an id
-- takes: term, after, max
select m.id, m.team, m.recipients, m.create_time, m.layout, m.removed, exists (select 1 from due d where d.id = m.id) as waits
from term t join mail m on m.id = t.mail_id where t.term = :term and t.mail_id > :after order by t.mail_id limit :max;

-- name: erase_mail
-- primary key; never a mail of the due-out journal
-- takes: recipients, id
update mail set removed = 'erased', raw = '', layout = null, subject = '', fingerprint = null, recipients = :recipients
where id = :id and case when exists (select 1 from due d where d.id = mail.id) then false else true end;

-- name: erase_result
-- primary key
-- takes: result, id
update archive set result = :result where id = :id;

-- name: erase_result_of
-- primary key
-- takes: id
select result from archive where id = :id;

-- name: erased_request_insert
-- primary key
-- takes: hash, mail_id
insert into erased_request (hash, mail_id) values (:hash, :mail_id) on conflict do nothing;

-- name: erased_request (read)
-- primary key
-- takes: hash
select mail_id from erased_request where hash = :hash;

-- name: allowance_drop
-- primary key
-- takes: key
delete from allowance where key = :key;

-- name: replica_unregister
-- primary key
-- takes: id
delete from replica where id = :id and not exists (select 1 from due where owner = replica.id);

-- name: owned
-- due_owner
-- takes: owner
select id, claim from due where owner = :owner;

-- name: mail_request (read)
-- mail_request
-- takes: team, request_id
select id, fingerprint from mail where team = :team and request_id = :request_id;

-- name: mail_exists (read)
-- primary key
-- takes: id
select count(*) from mail where id = :id;

-- name: content_chunks (read)
-- primary key
-- takes: hash
select data from content_chunk where hash = :hash order by n;

-- name: content_size (look)
-- primary key
-- takes: hash
select size from content where hash = :hash;

-- name: content_piece (look)
-- primary key
-- takes: from, bytes, hash, n
select substr(data, :from, :bytes) from content_chunk where hash = :hash and n = :n;

-- name: mail_piece (look)
-- primary key
-- takes: from, bytes, id
select substr(raw, :from, :bytes) from mail where id = :id;

-- name: content_touch
-- primary key; touched only grows, whatever a clock says
-- takes: touched, used, hash
update content set touched = case when touched < :touched then :touched else touched end, used = used or :used where hash = :hash;

-- name: content_used (read)
-- primary key
-- takes: hash
select count(*) from content where hash = :hash and used;

-- name: content_insert
-- primary key
-- takes: hash, size, touched, used
insert into content (hash, size, touched, used) values (:hash, :size, :touched, :used) on conflict do nothing;

-- name: chunk_insert
-- primary key
-- takes: hash, n, data
insert into content_chunk (hash, n, data) values (:hash, :n, :data) on conflict do nothing;

-- name: due_count (look)
-- due_server
-- takes: mail_server
select count(*) from due where mail_server = :mail_server;

-- name: breakers (read)
-- a handful of rows
select mail_server, version, failures, reason, retry_at, probe_until, healed_at, success_at, failure_at, last_failure from breaker;

-- name: breaker_make
-- primary key
-- takes: mail_server
insert into breaker (mail_server, version) values (:mail_server, 0) on conflict do nothing;

-- name: breaker_write
-- primary key
-- takes: version, failures, reason, retry_at, probe_until, healed_at, success_at, failure_at,
--   last_failure, mail_server
update breaker set version = :version, failures = :failures, reason = :reason, retry_at = :retry_at, probe_until = :probe_until, healed_at = :healed_at, success_at = :success_at, failure_at = :failure_at, last_failure = :last_failure
where mail_server = :mail_server;

-- name: quota_make
-- primary key
-- takes: mail_server, tokens, refilled_at, day
insert into quota (mail_server, tokens, refilled_at, day, day_used) values (:mail_server, :tokens, :refilled_at, :day, 0) on conflict do nothing;

-- name: quota_write
-- primary key
-- takes: tokens, refilled_at, day, day_used, mail_server
update quota set tokens = :tokens, refilled_at = :refilled_at, day = :day, day_used = :day_used where mail_server = :mail_server;

-- name: allowance_make
-- primary key; it changes the row to lock it: allowance_forget may be deleting it just now
-- takes: key, expire_time
insert into allowance (key, used, expire_time) values (:key, '[]', :expire_time) on conflict (key) do update set expire_time = excluded.expire_time;

-- name: allowance_write
-- primary key
-- takes: used, expire_time, key
update allowance set used = :used, expire_time = :expire_time where key = :key;

-- name: allowance_forget
-- allowance_expire
-- takes: expire_time
delete from allowance where expire_time <= :expire_time;

-- name: rate_share
-- primary key
-- takes: mail_server, replica
select call, granted, held from rate_share where mail_server = :mail_server and replica = :replica;

-- name: rate_share_write
-- primary key
-- takes: mail_server, replica, call, granted, held
insert into rate_share (mail_server, replica, call, granted, held) values (:mail_server, :replica, :call, :granted, :held)
on conflict (mail_server, replica) do update set call = excluded.call, granted = excluded.granted, held = excluded.held;

-- name: rate_share_forget
-- primary key; what those held that are gone counts as used
-- takes: mail_server
delete from rate_share where mail_server = :mail_server and replica not in (select id from replica);

-- name: rate_others
-- primary key; one row a replica
-- takes: mail_server, replica, alive_until
select coalesce(sum(x.held), 0) from rate_share x join replica r on r.id = x.replica
where x.mail_server = :mail_server and x.replica <> :replica and r.alive_until > :alive_until;

-- name: change_forgotten (look)
-- one row
select generation, xid, seq from change_forgotten;

-- name: chunk_delete
-- primary key
-- takes: hash
delete from content_chunk where hash = :hash;

-- name: upload_insert
-- primary key; upload_request refuses a reused request_id
-- takes: id, team, filename, content_type, sha256, size_bytes, hash, content_size, request_id,
--   create_time, expire_time
insert into upload (id, team, filename, content_type, sha256, size_bytes, hash, content_size, request_id, create_time, expire_time)
values (:id, :team, :filename, :content_type, :sha256, :size_bytes, :hash, :content_size, :request_id, :create_time, :expire_time) on conflict do nothing;

-- name: upload_by_request (look)
-- upload_request
-- takes: team, request_id
select id, team, filename, content_type, sha256, size_bytes, hash, content_size, expire_time from upload where team = :team and request_id = :request_id;

-- name: upload_forget
-- upload_expire
-- takes: expire_time
delete from upload where expire_time <= :expire_time;

-- name: token_insert
-- primary key
-- takes: id, name, hash, roles, teams, kinds, mail_servers, system, mails_per_day,
--   recipients_per_day, created_by, create_time, expire_time
insert into token (id, name, hash, roles, teams, kinds, mail_servers, system, mails_per_day, recipients_per_day, created_by, create_time, expire_time)
values (:id, :name, :hash, :roles, :teams, :kinds, :mail_servers, :system, :mails_per_day, :recipients_per_day, :created_by, :create_time, :expire_time);

-- name: tokens (read)
-- a handful of rows
-- takes: expire_time
select id, name, hash, roles, teams, kinds, mail_servers, system, mails_per_day, recipients_per_day, created_by, create_time, expire_time, use_time, revoke_time
from token where expire_time > :expire_time;

-- name: token_list (look)
-- primary key
-- takes: after, ended, now, max
select id, name, hash, roles, teams, kinds, mail_servers, system, mails_per_day, recipients_per_day, created_by, create_time, expire_time, use_time, revoke_time
from token where id > :after and (:ended or revoke_time is null and expire_time > :now) order by id limit :max;

-- name: token_get
-- primary key
-- takes: id
select id, name, hash, roles, teams, kinds, mail_servers, system, mails_per_day, recipients_per_day, created_by, create_time, expire_time, use_time, revoke_time
from token where id = :id;

-- name: token_revoke
-- primary key
-- takes: revoke_time, id
update token set revoke_time = :revoke_time where id = :id and revoke_time is null;

-- name: token_use
-- primary key
-- takes: time, id
update token set use_time = :time where id = :id and (use_time is null or use_time < :time);

-- name: sender_get
-- primary key
-- takes: team
select team, domains, update_time from sender_domain where team = :team;

-- name: sender_set
-- primary key
-- takes: team, domains, update_time
insert into sender_domain (team, domains, update_time) values (:team, :domains, :update_time)
on conflict (team) do update set domains = excluded.domains, update_time = excluded.update_time;

-- name: sender_delete
-- primary key
-- takes: team
delete from sender_domain where team = :team;

-- name: sender_list (look)
-- primary key
-- takes: after, max
select team, domains, update_time from sender_domain where team > :after order by team limit :max;

-- name: senders (read)
-- one row for each team that a system administrator has bound: a handful
select team, domains, update_time from sender_domain;

-- name: access_on (read)
-- one row
select access_on from installation;

-- name: access_switch
-- one row
-- takes: access_on
update installation set access_on = :access_on;

-- name: replica_old
-- a handful of rows
-- takes: alive_until
select name from replica where alive_until > :alive_until and asks = 0;

-- name: damage_control
-- primary keys; it changes nothing, because there is no such mail
-- takes: id
update due set claim = claim where id = :id and exists (select 1 from mail where id = :id);

-- name: damage_note
-- primary key
-- takes: mail_id, found_at, problem
insert into damage (mail_id, found_at, problem) values (:mail_id, :found_at, :problem)
on conflict (mail_id) do update set found_at = excluded.found_at, problem = excluded.problem;

-- name: damage_forget
-- a handful of rows
-- takes: found_at
delete from damage where found_at < :found_at;

-- name: damaged_page_note
-- primary key
-- takes: page, found_at, problem
insert into damaged_page (page, found_at, problem) values (:page, :found_at, :problem)
on conflict (page) do update set found_at = excluded.found_at, problem = excluded.problem;

-- name: damaged_page_forget
-- a handful of rows
-- takes: found_at
delete from damaged_page where found_at < :found_at;

-- name: damaged_page_count
-- a handful of rows
select count(*) from damaged_page;

-- name: unlisted_page (look)
-- mail_unlisted; only mail that a program of before has written
-- takes: max
select id from mail where layout is not null and not listed order by id limit :max;

-- name: loose_insert
-- primary key
-- takes: hash, since
insert into content_loose (hash, since) values (:hash, :since) on conflict do nothing;

-- name: loose_page (look)
-- primary keys, upload_hash; content_loose has what was let go lately
-- takes: touched, max
select l.hash from content_loose l left join content c on c.hash = l.hash
where (c.hash is null or c.touched < :touched) and not exists (select 1 from upload u where u.hash = l.hash) order by l.hash limit :max;

-- name: loose_content
-- primary keys of content and term, upload_hash, mail_unlisted
-- takes: hash, term, touched
delete from content where hash = :hash and touched < :touched and not exists (select 1 from term t where t.term = :term)
  and not exists (select 1 from upload u where u.hash = content.hash)
  and not exists (select 1 from mail m where m.layout is not null and not m.listed limit 1) returning size;

-- name: loose_delete
-- primary keys of content_loose, content and term. What neither went nor is needed by a mail
-- stays: an upload needs it
-- takes: hash, term
delete from content_loose where hash = :hash
  and (exists (select 1 from term t where t.term = :term limit 1) or not exists (select 1 from content c where c.hash = content_loose.hash));

-- name: rule_state (look)
-- primary key
-- takes: name
select at, mail_id from retention where name = :name;

-- name: rule_moved
-- primary key; a rule that was made to begin anew meanwhile does
-- takes: name, at, mail_id, mails, was
insert into retention (name, at, mail_id, mails) values (:name, :at, :mail_id, :mails)
on conflict (name) do update set at = case when retention.mail_id is not distinct from :was then excluded.at else retention.at end,
  mail_id = case when retention.mail_id is not distinct from :was then excluded.mail_id else retention.mail_id end, mails = retention.mails + excluded.mails;

-- name: rule_through
-- primary key
-- takes: name, run_time
insert into retention (name, run_time) values (:name, :run_time) on conflict (name) do update set run_time = excluded.run_time;

-- name: rules_again
-- a handful of rows
update retention set at = null, mail_id = null where name <> 'holder';

-- name: rules_done (look)
-- a handful of rows
select name, mails, run_time from retention where name <> 'holder' order by name;

-- name: holder_take
-- primary key
-- takes: holder, until, now
update retention set holder = :holder, until = :until where name = 'holder' and (holder = :holder or until is null or until < :now);

-- name: hold_insert
-- primary key
-- takes: id, team, mail_id, reference, reason, placed_by, place_time
insert into legal_hold (id, team, mail_id, reference, reason, placed_by, place_time) values (:id, :team, :mail_id, :reference, :reason, :placed_by, :place_time);

-- name: hold_lift
-- primary key
-- takes: lifted_by, lift_reason, lift_time, id
update legal_hold set lifted_by = :lifted_by, lift_reason = :lift_reason, lift_time = :lift_time where id = :id and case when lift_time is null then true else false end;

-- name: counted (look)
-- one row
select counted from count_state;

-- name: counted_now
-- one row
-- takes: counted
update count_state set counted = :counted;

-- name: count_empty
-- a handful of rows, as count_ripen
delete from count_queue where n = 0;

-- name: count_mend_queue
-- primary key decides what is new
-- takes: team, mail_server, priority, kind, status, second, n
insert into count_queue as t (team, mail_server, priority, kind, status, second, n) values (:team, :mail_server, :priority, :kind, :status, :second, :n)
on conflict (team, mail_server, priority, kind, status, second) do update set n = t.n + excluded.n;

-- name: count_mend_batch
-- primary key decides what is new
-- takes: batch_id, team, caller, status, waiting, doubtful, n, first, last
insert into count_batch as t (batch_id, team, caller, status, waiting, doubtful, n, first, last)
values (:batch_id, :team, :caller, :status, :waiting, :doubtful, :n, :first, :last)
on conflict (batch_id, team, caller, status, waiting, doubtful) do update
  set n = t.n + excluded.n, first = coalesce(excluded.first, t.first), last = coalesce(excluded.last, t.last);

-- name: operation_insert
-- primary key decides what is new
-- takes: id, action, scope, filter, request, actor, reason, dry, bound, total, now
insert into operation (id, action, scope, filter, request, actor, reason, dry, bound, state, after, pending, total, failures, create_time, update_time)
values (:id, :action, :scope, :filter, :request, :actor, :reason, :dry, :bound, 'running', '00000000-0000-0000-0000-000000000000', '[]', :total, '[]', :now, :now);

-- name: brake_insert
-- primary key decides what is new
-- takes: operation, every_team, teams, caller, team, mail_server, kind, batch_id, reference,
--   message_id, request_id, statuses, terms, since, bound
insert into operation_brake (operation, every_team, teams, caller, team, mail_server, kind, batch_id, reference, message_id, request_id, statuses, terms, since, bound)
values (:operation, :every_team, :teams, :caller, :team, :mail_server, :kind, :batch_id, :reference, :message_id, :request_id, :statuses, :terms, :since, :bound);

-- name: brake_delete
-- primary key
-- takes: operation
delete from operation_brake where operation = :operation;

-- name: operation_get (look)
-- primary key
-- takes: id
select id, action, scope, filter, request, actor, reason, dry, bound, state, owner, after, pending, total, matched, changed, failed, failures, error, create_time, update_time, end_time from operation where id = :id;

-- name: operation_list (look)
-- primary key, read backwards
-- takes: before, running, max
select id, action, scope, filter, request, actor, reason, dry, bound, state, owner, after, pending, total, matched, changed, failed, failures, error, create_time, update_time, end_time from operation where id < :before and (:running = 0 or state = 'running') order by id desc limit :max;

-- name: operation_write
-- primary key
-- takes: state, after, pending, matched, changed, failed, failures, error, update_time,
--   end_time, id
update operation set state = :state, after = :after, pending = :pending, matched = :matched, changed = :changed, failed = :failed, failures = :failures, error = :error,
  update_time = :update_time, end_time = :end_time, request = case when :state = 'running' then request else '{}' end
where id = :id;
