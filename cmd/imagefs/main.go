// Command imagefs mounts a catalog of disk images and shows every disk in
// every format. Run "imagefs help" for its commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"imagefs/fs/stage"
	"imagefs/remote"
)

// Exit codes, as the README lists them.
const (
	exitOK        = 0
	exitFailure   = 1
	exitUsage     = 2
	exitStore     = 3 // the store cannot be used: missing, unreachable, refused
	exitNotFound  = 4 // no such image, or nothing there to import
	exitBadImages = 5 // an image cannot be used: it is damaged, or was refused
)

// version is stamped by the Makefile.
var version = ""

// command is one verb. Its run gets what stands behind its flags.
type command struct {
	name    string
	args    string
	summary string
	help    string // what, when, and an example
	flags   func(*pflag.FlagSet)
	run     func(ctx context.Context, args []string) error
}

// commands is the list: a command is one file and one line here.
func commands() []*command {
	return []*command{
		mountCommand(),
		unmountCommand(),
		lsCommand(),
		showCommand(),
		importCommand(),
		rmCommand(),
		restoreCommand(),
		indexCommand(),
		warmCommand(),
		gcCommand(),
		checkCommand(),
		versionCommand(),
		helpCommand(),
	}
}

// usageError is a call that cannot be understood.
type usageError struct{ msg string }

func (e usageError) Error() string { return e.msg }

func usagef(format string, a ...any) error { return usageError{fmt.Sprintf(format, a...)} }

// errBadImages says that a command did its work and printed what is wrong.
var errBadImages = errors.New("some images cannot be used")

// storeError marks a store that could not be opened.
type storeError struct{ err error }

func (e storeError) Error() string { return e.err.Error() }
func (e storeError) Unwrap() error { return e.err }

func exitCode(err error) int {
	var usage usageError
	var store storeError
	var daemon failed
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &daemon):
		return daemon.Code
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &store), errors.Is(err, remote.ErrNoBucket), errors.Is(err, remote.ErrCredentials), errors.Is(err, remote.ErrUnavailable):
		return exitStore
	case errors.Is(err, errBadImages), errors.Is(err, stage.ErrRefused):
		return exitBadImages
	case errors.Is(err, fs.ErrNotExist):
		return exitNotFound
	}
	return exitFailure
}

func main() {
	args := os.Args[1:]
	// mount(8) and umount(8) call helpers named mount.TYPE and umount.TYPE with
	// the arguments of their own.
	switch verb, _, _ := strings.Cut(filepath.Base(os.Args[0]), "."); {
	case verb == filepath.Base(os.Args[0]): // no type: our own name
	case verb == "mount":
		args = append([]string{"mount"}, args...)
	case verb == "umount":
		args = append([]string{"unmount"}, args...)
	}
	os.Exit(Main(args, os.Stderr))
}

// Main runs one command line and returns its exit code. Data goes to standard
// output, messages to errw with the program's name.
func Main(args []string, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := dispatch(ctx, args)
	if err != nil && isDaemon() {
		return exitCode(err) // the command that waits prints it
	}
	if err != nil && !errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintf(errw, "imagefs: %v\n", err)
		var usage usageError
		if errors.As(err, &usage) {
			fmt.Fprintln(errw, `Run "imagefs help" for the commands and their flags.`)
		}
		return exitCode(err)
	}
	return exitOK
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return usagef("no command given")
	}
	name := args[0]
	switch name {
	case "-h", "--help":
		name = "help"
	case "--version":
		name = "version"
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		set := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
		set.SetOutput(io.Discard)
		set.SortFlags = false
		c.flags(set)
		if err := set.Parse(args[1:]); errors.Is(err, pflag.ErrHelp) {
			printHelp(os.Stdout, c)
			return nil
		} else if err != nil {
			return usagef("%s: %v", c.name, err)
		}
		return c.run(ctx, set.Args())
	}
	return usagef("unknown command %q", name)
}

// need checks the number of arguments.
func (c *command) need(args []string, n int) error {
	if len(args) != n {
		return usagef("%s takes %s, not %d arguments", c.name, c.args, len(args))
	}
	return nil
}

// buildVersion is the stamped version, or what the build recorded.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "development"
}
