-- +goose Up
-- claim: how often the mail has changed hands. Each owner gets a number of its own, and its writes count under that number only. The archive keeps the one
-- that the mail was finished under, so that whoever did not hear the answer can look whether it was his.
alter table due add column claim bigint not null default 0;
alter table archive add column claim bigint not null default 0;
-- What a person wants of a mail that is being sent: cancelled or held instead, and why.
alter table due add column wish text check (wish in ('cancel', 'hold'));
alter table due add column wish_reason text;
-- A queue like due: rows come and go, and what is dead has to go before it is a fifth of the table.
alter table change set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);

-- +goose Down
alter table change reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_vacuum_cost_delay);
alter table due drop column wish_reason;
alter table due drop column wish;
alter table archive drop column claim;
alter table due drop column claim;
