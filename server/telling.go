package server

import (
	"context"

	"github.com/maildispatch/maildispatch/server/internal/engine"
	"github.com/maildispatch/maildispatch/store"
)

// tellingStore is the API's store. It tells the engine of this process at once when a mail
// server was changed; the other replicas find out by themselves.
type tellingStore struct {
	*store.Store
	engine *engine.Engine
}

func (t tellingStore) UpdateServer(ctx context.Context, sc store.Scope, name string, ifVersion int64, a store.Audit, change func(*store.MailServer) error) (*store.MailServer, error) {
	s, err := t.Store.UpdateServer(ctx, sc, name, ifVersion, a, change)
	if err == nil {
		t.engine.ServerChanged(ctx, name)
	}
	return s, err
}

func (t tellingStore) DeleteServer(ctx context.Context, sc store.Scope, name string, ifVersion int64, force bool, a store.Audit) (*store.MailServer, store.DeletedMail, error) {
	s, n, err := t.Store.DeleteServer(ctx, sc, name, ifVersion, force, a)
	if err == nil {
		t.engine.ServerChanged(ctx, name)
	}
	return s, n, err
}

func (t tellingStore) UndeleteServer(ctx context.Context, sc store.Scope, name string, a store.Audit) (*store.MailServer, error) {
	s, err := t.Store.UndeleteServer(ctx, sc, name, a)
	if err == nil {
		t.engine.ServerChanged(ctx, name)
	}
	return s, err
}
