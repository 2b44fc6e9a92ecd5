package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"text/tabwriter"

	"github.com/spf13/pflag"
)

const overview = `imagefs shows every disk of a catalog of images as a file in every format.

Usage: imagefs COMMAND [flags] STORE [arguments]

STORE is a directory, or s3://BUCKET/PREFIX on any S3-compatible service.

Commands:
`

const environment = `
S3 settings come from flags or from the usual environment: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL_S3.
"imagefs help COMMAND" tells more of one.
`

func helpCommand() *command {
	c := &command{name: "help", args: "[COMMAND]", summary: "explain the commands"}
	c.flags = func(*pflag.FlagSet) {}
	c.run = func(_ context.Context, args []string) error {
		if len(args) == 0 {
			return printOverview(os.Stdout)
		}
		for _, d := range commands() {
			if d.name == args[0] {
				printHelp(os.Stdout, d)
				return nil
			}
		}
		return usagef("unknown command %q", args[0])
	}
	return c
}

func printOverview(w io.Writer) error {
	fmt.Fprint(w, overview)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range commands() {
		fmt.Fprintf(tw, "  %s %s\t%s\n", c.name, c.args, c.summary)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, environment)
	return err
}

func printHelp(w io.Writer, c *command) {
	fmt.Fprintf(w, "Usage: imagefs %s [flags] %s\n\n%s: %s.\n", c.name, c.args, c.name, c.summary)
	if c.help != "" {
		fmt.Fprintf(w, "\n%s", c.help)
	}
	set := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	set.SortFlags = false
	c.flags(set)
	if set.HasFlags() {
		fmt.Fprintf(w, "\nFlags:\n%s", set.FlagUsages())
	}
}

func versionCommand() *command {
	c := &command{name: "version", args: "", summary: "print the version"}
	c.flags = func(*pflag.FlagSet) {}
	c.run = func(_ context.Context, args []string) error {
		if err := c.need(args, 0); err != nil {
			return err
		}
		_, err := fmt.Printf("imagefs %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	return c
}
