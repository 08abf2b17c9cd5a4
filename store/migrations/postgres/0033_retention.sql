-- +goose Up
-- What of the mail's content was removed after it was finished; null = nothing. attachments: the
-- files that are kept as shared content; body: all of it.
alter table mail add column removed text check (removed in ('attachments', 'body', 'erased'));

-- How far each rule of retention has come in the archive, and who goes on with them just now.
create table retention (
  name text primary key,       -- 'holder', 'contents', or a rule: kind/part
  holder text not null default '', -- of the row 'holder': the process that removes
  until timestamptz,             -- of the row 'holder': another process may take it from then on
  at timestamptz,                -- of a rule: finish time of the last mail that it has looked at
  mail_id uuid,                  -- and that mail's id
  mails bigint not null default 0, -- so many were removed, or lost a part, by the rule
  run_time timestamptz           -- when the rule was last through
);
insert into retention (name) values ('holder');

-- Shared content that a mail has ceased to need. It is removed when no other mail needs it.
create table content_loose (hash bytea primary key, since date not null);

-- Finished mail that is kept whatever the rules say: a mail, a reference, or all mail of a team.
create table legal_hold (
  id uuid primary key,
  team text not null,
  mail_id uuid,                  -- null = not one mail
  reference text,                -- null = not by reference
  reason text not null,
  placed_by text not null,
  place_time timestamptz not null,
  lifted_by text,
  lift_reason text,
  lift_time timestamptz,         -- null = it holds
  check (mail_id is null or reference is null)
);
create index legal_hold_open on legal_hold (team) where lift_time is null;

-- +goose Down
drop table legal_hold;
drop table content_loose;
drop table retention;
alter table mail drop column removed;
