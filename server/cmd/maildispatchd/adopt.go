package main

import (
	"context"
	"fmt"

	"github.com/maildispatch/maildispatch/server"
)

// adopt goes on with a database that was restored, copied or promoted without its last commits.
func adopt(ctx context.Context, args []string) error {
	c, err := configOf("adopt", args)
	if err != nil {
		return err
	}
	a, err := server.Adopt(ctx, c)
	if err != nil {
		return err
	}
	if a.WentBack.Since.IsZero() {
		fmt.Println("nothing to adopt: the database goes on from where it was")
		return nil
	}
	fmt.Printf("the database went back in time: %s\n%d mails wait to be sent again, flagged possible_duplicate\n", a.WentBack.Why, a.Released)
	for _, f := range a.Failures {
		fmt.Printf("mail %s: %v\n", f.ID, f.Err)
	}
	if n := len(a.Failures); n > 0 {
		return failed{fmt.Errorf("adopt: %d mails could not be released: run it again", n)}
	}
	return nil
}
