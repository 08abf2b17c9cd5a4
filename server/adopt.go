package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/maildispatch/maildispatch/server/internal/lifecycle"
	"github.com/maildispatch/maildispatch/store"
)

// wentBack says for people what happened to the database, and what to do.
func wentBack(b store.WentBack) string {
	return fmt.Sprintf("this database was restored or copied (found %s): %s; what was due then is held, because it may have left: "+
		"look at it and release it by ReleaseMails, or let all of it go by `maildispatchd adopt`", b.Since.UTC().Format(time.RFC3339), b.Why)
}

// Adoption is what Adopt did.
type Adoption struct {
	WentBack store.WentBack // Since is zero: there was nothing to adopt
	Released int
	Failures []store.ModifyFailure // mails that could not be released, the first of them
}

// Adopt says "go on" to a database that was restored or copied: what was held for that waits to
// be sent again, flagged as a possible duplicate. A database that no service was started on
// since is looked at first.
func Adopt(ctx context.Context, cfg Config) (a Adoption, err error) {
	if err := cfg.Validate(); err != nil {
		return a, err
	}
	if _, err := readKeys(&cfg); err != nil {
		// most likely another key file than the service's, with another state file
		return a, err
	}
	log, _ := cfg.logger()
	st, err := store.Open(ctx, cfg.Database, store.Options{Logger: log, Pools: cfg.Connections, AllowUnsafe: cfg.AllowUnsafe})
	if errors.Is(err, store.ErrLocked) {
		return a, fmt.Errorf("%w: stop the service first", err)
	}
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if a.WentBack, err = st.Remember(ctx, cfg.stateFile()); err != nil || a.WentBack.Since.IsZero() {
		return a, err
	}
	now, err := st.Now(ctx)
	if err != nil {
		return a, err
	}
	audit := store.Audit{Actor: "maildispatchd", Action: "Adopt", Reason: a.WentBack.Why}
	f := &store.MailFilter{Statuses: []store.MailStatus{store.MailHeld}}
	_, a.Released, a.Failures, err = st.Modify(ctx, store.Everything, nil, f, false, audit, func(m *store.Mail, _ *store.MailServer) (*store.Change, error) {
		if m.LastError != store.WentBackReason {
			return nil, nil // somebody holds it
		}
		return lifecycle.Release(m, now)
	})
	if err != nil || len(a.Failures) > 0 {
		return a, err
	}
	return a, st.Adopted(ctx)
}
