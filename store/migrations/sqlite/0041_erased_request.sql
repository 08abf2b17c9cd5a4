-- +goose Up
-- What is left of a request_id that named an address which was erased: a keyed hash of the team and
-- the request_id. A caller that sends it again is told of the same mail, and none is sent twice.
create table erased_request (
  hash blob primary key,
  mail_id text not null
);
create index erased_request_mail on erased_request (mail_id);

-- +goose Down
drop table erased_request;
