-- +goose Up
-- Positions of the change log count within a generation. A database that went back in time
-- begins a new one, so that no old position seems to be a later one.
alter table change_forgotten add column generation integer not null default 0;

-- +goose Down
alter table change_forgotten drop column generation;
