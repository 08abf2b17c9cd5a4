-- +goose Up
-- claim: how often the mail has changed hands. Each owner gets a number of its own, and its writes count under that number only. The archive keeps the one
-- that the mail was finished under, so that whoever did not hear the answer can look whether it was his.
alter table due add column claim integer not null default 0;
alter table archive add column claim integer not null default 0;
-- What a person wants of a mail that is being sent: cancelled or held instead, and why.
alter table due add column wish text check (wish in ('cancel', 'hold'));
alter table due add column wish_reason text;

-- +goose Down
alter table due drop column wish_reason;
alter table due drop column wish;
alter table archive drop column claim;
alter table due drop column claim;
