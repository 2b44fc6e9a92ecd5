package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"imagefs/remote/catalog"
)

// gcRow is something that gc removed, or would.
type gcRow struct {
	Kind  string    `json:"kind"`
	Key   string    `json:"key"`
	Size  int64     `json:"size"`
	Time  time.Time `json:"time"`
	Image string    `json:"image,omitempty"`
}

// gcReport is all that gc prints as JSON.
type gcReport struct {
	DryRun  bool    `json:"dry_run"`
	Removed []gcRow `json:"removed"`
	Bytes   int64   `json:"bytes"`
	Error   string  `json:"error,omitempty"`
}

func gcCommand() *command {
	var f storeFlags
	var dryRun, asJSON bool
	older := age(7 * 24 * time.Hour)
	c := &command{
		name: "gc", args: "STORE", summary: "free the space of what is no longer of use",
		help: `Removes, when they are older than --older-than: deleted images with their
objects, objects below disks/ that no image names, and uploads that were not
completed. It removes nothing unless it can read the entry of every image. What
is being imported is named by no entry yet: choose a time longer than the
longest import. --dry-run only lists.

Example: imagefs gc --older-than 30d --dry-run s3://images/prod
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		set.Var(&older, "older-than", "how long ago it was deleted or stored, such as 36h, 7d or 2w")
		set.BoolVarP(&dryRun, "dry-run", "n", false, "remove nothing, list what would be")
		set.BoolVar(&asJSON, "json", false, "print JSON")
		f.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		if err := c.need(args, 1); err != nil {
			return err
		}
		st, err := f.open(ctx, args[0])
		if err != nil {
			return fmt.Errorf("open store %q: %w", args[0], err)
		}
		defer st.close()
		out := gcReport{DryRun: dryRun, Removed: []gcRow{}}
		err = catalog.GC(ctx, st, catalog.GCOptions{
			OlderThan: time.Duration(older), DryRun: dryRun,
			Report: func(i catalog.GCItem) {
				out.Removed = append(out.Removed, gcRow{i.Kind, i.Key, i.Size, i.Time.UTC(), i.Image})
				out.Bytes += i.Size
			},
		})
		if err != nil {
			out.Error = err.Error() // what was removed before is told all the same
		}
		perr := out.print(asJSON)
		if err == nil {
			err = perr
		}
		return err
	}
	return c
}

func (r *gcReport) print(asJSON bool) error {
	if asJSON {
		return printJSON(r)
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if len(r.Removed) > 0 {
		fmt.Fprintln(tw, "Kind\tSize\tSince\tImage\tKey")
	}
	for _, i := range r.Removed {
		size := "-"
		if i.Kind != "upload" { // whose size the store does not tell
			size = iec(i.Size)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", i.Kind, size, i.Time.Format(time.RFC3339), orDash(i.Image), i.Key)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	verb := "removed"
	if r.DryRun {
		verb = "to be removed"
	}
	_, err := fmt.Printf("%s: %s, %s\n", verb, count(len(r.Removed), "thing"), iec(r.Bytes))
	return err
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age is a flag of time: a duration in which d (24 hours) and w (7 d) count too.
type age time.Duration

func (a *age) Type() string { return "age" }

func (a *age) String() string {
	d := time.Duration(*a)
	if day := 24 * time.Hour; d > 0 && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

var ageForm = regexp.MustCompile(`^(?:(\d{1,3})w)?(?:(\d{1,4})d)?(.*)$`)

func (a *age) Set(v string) error {
	m := ageForm.FindStringSubmatch(v)
	if v == "" || m == nil {
		return fmt.Errorf("%q is not an age such as 36h, 7d or 2w", v)
	}
	weeks, _ := strconv.Atoi(m[1]) // a few digits, or none
	days, _ := strconv.Atoi(m[2])
	var rest time.Duration
	if m[3] != "" {
		var err error
		if rest, err = time.ParseDuration(m[3]); err != nil {
			return fmt.Errorf("%q is not an age such as 36h, 7d or 2w", v)
		}
	}
	sum := time.Duration(7*weeks+days)*24*time.Hour + rest
	if rest < 0 || sum < rest {
		return fmt.Errorf("%q is not an age such as 36h, 7d or 2w", v)
	}
	*a = age(sum)
	return nil
}
