-- +goose Up
-- A slot's token numbers its taking: a statement that is carried out late names an old one.
alter table connection_slot add column token bigint not null default 0;

-- What each replica has of a mail server's rate limits, as it has said itself.
create table rate_share (
  mail_server text not null,
  replica bigint not null,
  call bigint not null,    -- the last one heard; an older one is late
  granted bigint not null, -- since its process began
  held integer not null,   -- of that, what may still leave
  primary key (mail_server, replica)
);

-- +goose Down
drop table rate_share;
alter table connection_slot drop column token;
