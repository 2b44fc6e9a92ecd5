package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"imagefs/remote/catalog"
)

// lsRow is one image as ls prints it, with the names cloud image services use.
type lsRow struct {
	ID              string   `json:"id"`
	Name            string   `json:"name"`
	DiskFormat      string   `json:"disk_format"`
	ContainerFormat string   `json:"container_format"`
	Size            int64    `json:"size"`         // bytes stored
	VirtualSize     *int64   `json:"virtual_size"` // bytes of all disks; null when unknown
	Status          string   `json:"status"`
	Disks           int      `json:"disks"`
	Tags            []string `json:"tags,omitempty"`
	Error           string   `json:"error,omitempty"`

	Deleted *time.Time `json:"deleted,omitempty"` // since when, with --deleted
}

func lsCommand() *command {
	var f storeFlags
	var asJSON, open, deleted bool
	c := &command{
		name: "ls", args: "STORE", summary: "list the images of a store",
		help: "Lists without opening an image, so the virtual size of one that has no\ncatalog entry is not known: --open opens each to find out.\n--deleted lists the images that \"imagefs restore\" can bring back instead.\n\nExample: imagefs ls s3://images/prod\n",
	}
	c.flags = func(set *pflag.FlagSet) {
		set.BoolVar(&asJSON, "json", false, "print JSON")
		set.BoolVar(&open, "open", false, "open every image: tells virtual sizes and broken images")
		set.BoolVar(&deleted, "deleted", false, "list deleted images, with the time of it")
		f.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		if err := c.need(args, 1); err != nil {
			return err
		}
		s, err := start(ctx, &f, args[0], "", defaultCache)
		if err != nil {
			return err
		}
		defer s.close()
		if deleted {
			return s.listDeleted(ctx, open, asJSON)
		}
		rows := []lsRow{}
		err = s.cat.All(ctx, func(im *catalog.Image) error {
			rows = append(rows, s.row(ctx, im, open))
			return ctx.Err()
		})
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(rows)
		}
		return printRows(rows)
	}
	return c
}

// listDeleted prints the images that can be brought back.
func (s *session) listDeleted(ctx context.Context, open, asJSON bool) error {
	if open {
		return usagef("ls: deleted images cannot be opened: leave --open or --deleted away")
	}
	list, err := s.cat.Deleted(ctx)
	if err != nil {
		return err
	}
	rows := []lsRow{}
	for _, im := range list {
		r := s.row(ctx, im, false)
		at := im.Deleted.UTC()
		r.Deleted = &at
		rows = append(rows, r)
	}
	if asJSON {
		return printJSON(rows)
	}
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tName\tDisk Format\tSize\tDisks\tDeleted\tStatus")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", r.ID, r.Name, r.DiskFormat, iec(r.Size), r.Disks, r.Deleted.Format(time.RFC3339), r.Status)
	}
	return tw.Flush()
}

func (s *session) row(ctx context.Context, im *catalog.Image, open bool) lsRow {
	r := lsRow{
		ID: catalog.FormatID(im.ID), Name: im.Name, ContainerFormat: "bare",
		Status: im.Status, Disks: len(im.Disks), Tags: im.Tags,
	}
	if im.Err != nil {
		r.Status, r.Error = "error", im.Err.Error()
	}
	var virtual int64
	known := im.Err == nil
	for _, d := range im.Disks {
		r.Size += d.Object.Size
		if !strings.Contains(","+r.DiskFormat+",", ","+d.Imported()+",") {
			r.DiskFormat = strings.TrimPrefix(r.DiskFormat+","+d.Imported(), ",")
		}
		size := d.VirtualSize
		if size == 0 && d.Format == "raw" {
			size = d.Object.Size
		}
		if open && im.Err == nil {
			o, err := s.opener.Open(ctx, im, d)
			if err != nil {
				r.Status, r.Error, known = "error", err.Error(), false
				continue
			}
			size = o.Size
		}
		virtual += size
		known = known && size != 0
	}
	if known {
		r.VirtualSize = &virtual
	}
	return r
}

func printRows(rows []lsRow) error {
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tName\tDisk Format\tContainer Format\tSize\tVirtual Size\tStatus")
	for _, r := range rows {
		virtual := "-"
		if r.VirtualSize != nil {
			virtual = iec(*r.VirtualSize)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Name, r.DiskFormat, r.ContainerFormat, iec(r.Size), virtual, r.Status)
	}
	return tw.Flush()
}

// iec writes a number of bytes as people read it.
func iec(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1023.95 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
