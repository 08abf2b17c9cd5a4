package server

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/maildispatch/maildispatch/server/internal/outbound"
	"github.com/maildispatch/maildispatch/server/internal/seal"
	"github.com/maildispatch/maildispatch/store"
)

// checkSecrets makes sure that the key file is the one that belongs to the database. Where it
// opens none of the secrets there, every login would fail, and what was sealed by it from then
// on would be lost with the right file: the service does not start unless it is told to. made:
// the file was made a moment ago, because there was none; it goes again, or the next start
// would take it for the right one.
func checkSecrets(ctx context.Context, cfg *Config, st *store.Store, out *outbound.Outbound, keys *seal.Ring, made bool, log *slog.Logger) error {
	in, err := out.Census(ctx, st)
	if err != nil || len(in.Lost) == 0 {
		return err
	}
	lost := strings.Join(in.Lost[:min(len(in.Lost), 5)], ", ")
	if n := len(in.Lost) - 5; n > 0 {
		lost = fmt.Sprintf("%s and %d more", lost, n)
	}
	if in.Current+in.Older > 0 || cfg.LostSecrets {
		log.Warn("stored secrets do not open; give them again, or put the key that sealed them into the key file", "secrets", lost)
		return nil
	}
	if made {
		keys.Unmake()
		return fmt.Errorf("key-file: %s does not exist, and the database has secrets that were sealed by it: %s; put the file back, or start with --lost-secrets and give them again", cfg.keyFile(), lost)
	}
	return fmt.Errorf("key-file: %s opens none of the database's secrets: %s; give the file that belongs to this database, or start with --lost-secrets and give them again", cfg.keyFile(), lost)
}
