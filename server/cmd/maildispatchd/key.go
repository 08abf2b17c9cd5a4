package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"google.golang.org/grpc/status"

	pb "github.com/maildispatch/maildispatch/proto/maildispatch/v1"
	"github.com/maildispatch/maildispatch/server/internal/seal"
)

const keyUse = "key: write `maildispatchd key create FILE`, `key rotate FILE`, `key add FILE`, `key use FILE` or `key reseal --database=... --key-file=...`"

// key makes and changes the keys that seal secrets. A rotation takes no downtime: `rotate` adds
// a key to the file, which a running service reads again by itself, and `reseal` seals the
// stored secrets by it. Where replicas have a copy of the file each, `add` adds a key that only
// opens, and `use` lets it seal once all of them have it.
func key(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(keyUse)
	}
	switch verb, args := args[0], args[1:]; {
	case isHelp(verb):
		fmt.Println(keyUse)
		return flag.ErrHelp
	case verb == "create" && len(args) == 1:
		return seal.CreateKeyFile(args[0])
	case verb == "rotate" && len(args) == 1:
		id, err := seal.Rotate(args[0])
		if err != nil {
			return err
		}
		fmt.Printf("key %d seals from now on; `maildispatchd key reseal` seals by it what is stored\n", id)
		return nil
	case verb == "add" && len(args) == 1:
		id, err := seal.Add(args[0])
		if err != nil {
			return err
		}
		fmt.Printf("key %d opens from now on; when every replica has the file: `maildispatchd key use`\n", id)
		return nil
	case verb == "use" && len(args) == 1:
		if err := seal.Use(args[0]); err != nil {
			return err
		}
		fmt.Println("the newest key seals from now on; when every replica has the file: `maildispatchd key reseal`")
		return nil
	case verb == "reseal":
		return reseal(ctx, args)
	}
	return errors.New(keyUse)
}

func reseal(ctx context.Context, args []string) error {
	var count bool
	var reason string
	c, err := configOf("key reseal", args, func(fs *flag.FlagSet) {
		fs.BoolVar(&count, "count", false, "only count")
		fs.StringVar(&reason, "reason", "", "why, for the audit log")
	})
	if err != nil {
		return err
	}
	ctx, admin, done, err := accessAdmin(ctx, c, true)
	if err != nil {
		return err
	}
	defer done()
	r, err := admin.ResealSecrets(ctx, &pb.ResealSecretsRequest{ValidateOnly: count, Reason: reason})
	if err != nil {
		return failed{fmt.Errorf("key: %s", status.Convert(err).Message())}
	}
	verb := "were sealed by the newest key"
	if count {
		verb = "would be sealed by the newest key"
	}
	fmt.Printf("%d secrets %s, %d were already\n", r.Resealed, verb, r.Current)
	for _, l := range r.Lost {
		fmt.Printf("%s: the %s does not open: give it again, or put the key that sealed it into the key file\n", l.MailServer, l.What)
	}
	if r.LostCount > 0 {
		return failed{fmt.Errorf("key: %d secrets do not open; keep all keys in the file until they do", r.LostCount)}
	}
	return nil
}
