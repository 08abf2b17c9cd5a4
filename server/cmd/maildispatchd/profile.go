//go:build profile

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
)

// Built with -tags profile, serve writes a CPU profile of its whole life into the folder that
// MAILDISPATCH_PROFILE_DIR names. The load generator uses it.
func init() {
	dir := os.Getenv("MAILDISPATCH_PROFILE_DIR")
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == "serve" })
	if dir == "" {
		return
	}
	run := commands[i].run
	commands[i].run = func(ctx context.Context, args []string) error {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("service-%d.pprof", os.Getpid())))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		return run(ctx, args)
	}
}
