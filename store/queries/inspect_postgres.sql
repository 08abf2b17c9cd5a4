-- What an inspection asks of PostgreSQL, where it looks into json.

-- name: clock
-- none; not now(), which stands still in a transaction
select clock_timestamp();

-- name: I4
-- scans of due, archive and mail
with j as (
  select id, case when owner is null then status else 'sending' end as status, progress as p from due
  union all
  select id, status, result from archive
), t as (
  select j.id, j.status, json_array_length(m.recipients) as n, count(r.value) as results, count(r.value) filter (where r.value ->> 's' = 'accepted') as accepted,
    count(r.value) filter (where r.value ->> 's' = 'unknown') as unknown
  from j join mail m on m.id = j.id left join lateral json_array_elements(j.p -> 'r') r on true
  group by j.id, j.status, json_array_length(m.recipients)
)
select id::text as subject, case
  when results not in (0, n) then 'has ' || results || ' results for ' || n || ' recipients'
  when status = 'sent' then 'is sent, and of ' || n || ' recipients ' || accepted || ' are accepted'
  else 'is ' || status || ', and of ' || n || ' recipients ' || accepted || ' are accepted and ' || unknown || ' unknown'
end as problem
from t
where results not in (0, n) or status = 'sent' and accepted <> n or status not in ('sent', 'cancelled') and n > 0 and accepted = n
  or status in ('queued', 'deferred') and accepted > 0 or status = 'failed' and (results = 0 or accepted + unknown > 0)
  or status = 'unknown' and unknown = 0 or status = 'partially_sent' and accepted = 0
limit 1000;

-- name: I5
-- scans of due and archive
with j as (
  select id, progress as p from due where not possible_duplicate
  union all
  select id, result from archive where not possible_duplicate
), c as materialized (
  select id, p from j where p::text like '%"o":"unknown"%'
)
select c.id::text as subject, 'was tried again after an attempt of unknown outcome, and is not flagged' as problem from c
where exists (select 1 from json_array_elements(c.p -> 'a') a, json_array_elements(c.p -> 'r') r
    where a.value ->> 'o' = 'unknown' and (r.value ->> 'n')::integer > (a.value ->> 'n')::integer)
  and c.id::text not in (select target from audit where action = 'ResolveMail')
limit 1000;

-- name: I6
-- scans of mail; primary keys of content and content_chunk. "=" is the content that the piece
-- before named
with seg as materialized (
  select m.id, coalesce((s.value ->> 'n')::bigint, 0) as n, coalesce((s.value ->> 'o')::bigint, 0) as o, s.value ->> 'h' as h from mail m, json_array_elements(m.layout) s where m.layout is not null and m.removed is null
), sizes as (
  select id, sum(n) as whole, coalesce(sum(n) filter (where h is null), 0) as inline from seg group by id
)
select id::text as subject, 'is said to have ' || size_bytes || ' bytes and has ' || octet_length(raw) as problem from mail
where layout is null and octet_length(raw) <> size_bytes and removed is null
union all
select m.id::text, 'is said to have ' || m.size_bytes || ' bytes, its layout ' || coalesce(z.whole, 0) from mail m left join sizes z on z.id = m.id
where m.layout is not null and m.removed is null and coalesce(z.whole, 0) <> m.size_bytes
union all
select m.id::text, 'has ' || octet_length(m.raw) || ' bytes of its own, by its layout ' || coalesce(z.inline, 0) from mail m left join sizes z on z.id = m.id
where m.layout is not null and m.removed is null and coalesce(z.inline, 0) <> octet_length(m.raw)
union all
select x.id, 'has a piece up to byte ' || x.upto || ' of content ' || x.h || ', which is not stored or shorter'
from (select h, max(o + n) as upto, min(id::text) as id from seg where h <> '=' group by h) x
where not exists (select 1 from content c where c.hash = decode(x.h, 'hex') and c.size >= x.upto)
union all
select 'content ' || encode(c.hash, 'hex'), 'is said to have ' || c.size || ' bytes and has ' || coalesce(k.bytes, 0)
from content c left join (select hash, sum(octet_length(data)) as bytes from content_chunk group by hash) k on k.hash = c.hash
where coalesce(k.bytes, 0) <> c.size
union all
select id::text, 'has no recipient' from mail where json_array_length(recipients) = 0
union all
select id::text, 'has no sender' from mail where sender = ''
limit 1000;

-- name: terms
-- primary key of term
-- takes: list, mail_id
select count(*) from json_array_elements_text(:list::json) x where not exists (select 1 from term t where t.term = x.value::bigint and t.mail_id = :mail_id);

-- name: I9
-- a handful of rows
select mail_id::text as subject, 'cannot be read or written, as somebody found at ' || to_char(found_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ': ' || problem as problem from damage
union all
select 'page ' || page || ' of due', 'cannot be read, as somebody found at ' || to_char(found_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ': ' || problem from damaged_page
order by subject limit 1000;
