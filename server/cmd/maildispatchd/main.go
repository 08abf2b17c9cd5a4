// Command maildispatchd is the mail dispatch service. Run it without arguments for its
// commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// command is one subcommand; run returns what is wrong.
type command struct {
	name, use, short string
	run              func(ctx context.Context, args []string) error
}

var commands = []command{
	{"serve", "serve [flags]", "the service", serve},
	{"demo", "demo [--keep]", "the whole main job on this machine, self-contained; exits 0 if every step did what it says", demo},
	{"catchall", "catchall [--listen host:port] [--show] [--dir FOLDER]", "an SMTP server that takes every mail and sends none on; some addresses are answered with faults", catchAll},
	{"migrate", "migrate [flags]", "bring the database's schema up to date and end", migrate},
	{"doctor", "doctor [flags]", "look whether the database keeps the promise, and at what a person should do; changes nothing", doctor},
	{"adopt", "adopt [flags]", "go on with a database that was restored or copied: let go what was held for it", adopt},
	{"backup", "backup FILE [flags]", "copy an SQLite database into a file, also while a service uses it", backup},
	{"copy", "copy --from=sqlite:PATH --to=postgres://...", "move everything from SQLite to an empty PostgreSQL database, while no service runs", copyDatabase},
	{"check-config", "check-config [flags]", "say what is wrong with the configuration, or print it", checkConfig},
	{"health", "health [--target host:port] [--service liveness|adopted] [--ca FILE] [--cert FILE --key FILE]", "ask a running service whether it is well", healthCheck},
	{"token", "token create|list|revoke", "make, list and revoke the tokens by which callers are known", token},
	{"key", "key create|rotate|add|use FILE, key reseal", "make a key file, add a new key to it, seal stored secrets by it", key},
}

// Exit codes: 0 done, 1 the work failed, 2 it could not begin (flags, database, port, key
// file).
const (
	exitFailed = 1
	exitUsage  = 2
)

// failed is an error of work that had begun.
type failed struct{ error }

func main() {
	if len(os.Args) < 2 {
		usage(os.Stderr)
		os.Exit(exitUsage)
	}
	if isHelp(os.Args[1]) || os.Args[1] == "help" {
		usage(os.Stdout)
		return
	}
	for _, c := range commands {
		if c.name != os.Args[1] {
			continue
		}
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		err := c.run(ctx, os.Args[2:])
		stop()
		if err == nil || errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "maildispatchd:", oneLine(err))
		if _, ok := err.(failed); ok {
			os.Exit(exitFailed)
		}
		os.Exit(exitUsage)
	}
	fmt.Fprintf(os.Stderr, "maildispatchd: %q is not a command; `maildispatchd help` lists them\n", os.Args[1])
	os.Exit(exitUsage)
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

func usage(w io.Writer) {
	fmt.Fprintln(w, "maildispatchd sends the company's mail. Commands:")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-28s %s\n", c.use, c.short)
	}
	fmt.Fprintln(w, "Each flag has an environment twin, MAILDISPATCH_<FLAG>. `maildispatchd serve -h` lists the flags.")
}

// oneLine keeps an error readable in a log that takes lines.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
