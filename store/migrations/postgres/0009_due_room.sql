-- +goose Up
-- Room for the mark beside every row: it is then written into the same page, and no index hears of it. The table holds only what is on its way.
alter table due set (fillfactor = 40);

-- +goose Down
alter table due set (fillfactor = 80);
