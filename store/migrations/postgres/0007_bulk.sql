-- +goose Up
create index mail_batch on mail (batch_id, team, id) where batch_id is not null;
-- Why a mail was sent once more; with resent_from.
alter table mail add column resend_reason text;
-- A mail refers to it, or did: only clean-up after mail that is gone may take it. What is older than this column counts as used.
alter table content add column used boolean not null default true;

-- Files that callers have uploaded for mails to come. content holds them as they stand in a mail, base64 in lines.
create table upload (
  id uuid primary key,
  team text not null,
  filename text not null,
  content_type text not null,
  sha256 bytea not null, -- of the file
  size_bytes bigint not null,
  hash bytea not null, -- of the content
  content_size bigint not null,
  request_id text,
  create_time timestamptz not null,
  expire_time timestamptz not null
);
create unique index upload_request on upload (team, request_id) where request_id is not null;
create index upload_expire on upload (expire_time);
create index upload_hash on upload (hash);
create index content_unused on content (touched) where not used;

-- +goose Down
drop index content_unused;
drop table upload;
alter table content drop column used;
alter table mail drop column resend_reason;
drop index mail_batch;
