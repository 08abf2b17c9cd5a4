// Maildispatch is the command line of the service: it finds mails, says why one was not
// delivered and what to do about it, sends, stops and repeats mail, and keeps mail servers.
//
// Exit codes: 0 done, 1 not everything was done or delivered or nothing was found, 2 the
// command line is wrong, 3 the service cannot be reached, 4 the service refused.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/maildispatch/maildispatch/client"
)

const (
	exitDone        = 0
	exitNotAll      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRefused     = 4
)

// errNotAll ends a command that did less than it was asked to; what is missing was said.
var errNotAll = errors.New("not everything was done")

// usageError is a command line that makes no sense.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], &app{in: os.Stdin, out: os.Stdout, errs: os.Stderr, terminal: isTerminal(os.Stdout), drawn: isTerminal(os.Stderr), dial: client.New})
	stop()
	os.Exit(code)
}

// run is the program: its exit code.
func run(ctx context.Context, args []string, a *app) int {
	root := a.command()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errs)
	err := root.ExecuteContext(ctx)
	a.close()
	code := exitCode(err)
	if err != nil && !errors.Is(err, errNotAll) {
		fmt.Fprintln(a.errs, "maildispatch:", a.words(err))
		if code == exitUsage {
			fmt.Fprintln(a.errs, "Try --help.")
		}
	}
	return code
}

func exitCode(err error) int {
	var bad usageError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errNotAll), errors.Is(err, context.Canceled):
		return exitNotAll
	case errors.As(err, &bad):
		return exitUsage
	}
	s, is := status.FromError(err)
	switch {
	case !is:
		return exitUsage // cobra's own, or a file that is not there
	case s.Code() == codes.Canceled:
		return exitNotAll
	case s.Code() == codes.Unavailable, s.Code() == codes.DeadlineExceeded:
		return exitUnreachable
	}
	return exitRefused
}

// words is an error for a person.
func (a *app) words(err error) string {
	s, is := status.FromError(err)
	if !is {
		return safe(err.Error())
	}
	text := safe(s.Message())
	if s.Code() == codes.Unavailable && client.ReasonOf(err) == "" {
		return fmt.Sprintf("%s cannot be reached: %s", safe(a.address()), text)
	}
	if vs := client.Violations(err); len(vs) > 0 {
		text = "the service refused this"
		for _, v := range vs {
			text += "\n  " + safe(v.Field) + " " + safe(v.Description)
		}
	}
	if r := client.ReasonOf(err); r != "" {
		text += " (" + safe(r) + ")"
	}
	return text
}
