package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/fs/image"
	"imagefs/remote/catalog"
)

// showImage is all that is known of an image.
type showImage struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Status     string            `json:"status"`
	Created    *time.Time        `json:"created,omitempty"`
	Modified   time.Time         `json:"modified"`
	Tags       []string          `json:"tags,omitempty"`
	Properties map[string]string `json:"properties,omitempty"`
	Disks      []showDisk        `json:"disks"`
	Packages   []showFile        `json:"packages,omitempty"` // the whole image as one file
	Targets    []showTarget      `json:"targets,omitempty"`
	Error      string            `json:"error,omitempty"`
}

type showDisk struct {
	Number      int        `json:"number"`
	Format      string     `json:"disk_format"` // it was copied in as
	Stored      string     `json:"stored_as"`   // format of the object
	Original    string     `json:"original_sha256,omitempty"`
	Declared    bool       `json:"declared,omitempty"`
	Modified    time.Time  `json:"modified,omitzero"`
	Object      string     `json:"object"`
	ETag        string     `json:"etag"`
	SHA256      string     `json:"sha256,omitempty"`
	Size        int64      `json:"size"`
	VirtualSize int64      `json:"virtual_size,omitempty"`
	Allocated   int64      `json:"allocated,omitempty"` // guest bytes that are not known to be zeros
	Files       []showFile `json:"files,omitempty"`
	Notes       []string   `json:"notes,omitempty"`
	Error       string     `json:"error,omitempty"`
}

type showFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size,omitempty"`
	Stored bool   `json:"stored,omitempty"` // what was copied in, not a view
	Hidden string `json:"not_shown,omitempty"`
}

// showTarget is a place that the image can go to, and how.
type showTarget struct {
	Name    string `json:"name"`
	File    string `json:"file,omitempty"` // below a mount's images/
	Command string `json:"command,omitempty"`
	Hidden  string `json:"not_possible,omitempty"`
	Asked   bool   `json:"only_with_formats,omitempty"` // the mount shows the file if --formats names it
}

func showCommand() *command {
	var f storeFlags
	var asJSON bool
	var mount string
	c := &command{
		name: "show", args: "STORE IMAGE", summary: "show all that is known of one image",
		help: `Opens the image's disks and says which files a mount shows of them, how large
each is, and why one is not shown. Then, for every cloud and hypervisor, which
file to copy and the command that uploads or attaches it, as if the store were
mounted at --mount; what only you know is in capitals. Where --formats is named,
the mount needs it to show the file.

Example: imagefs show ./store centos7
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		set.BoolVar(&asJSON, "json", false, "print JSON")
		set.StringVar(&mount, "mount", "/mnt/imagefs", "mount point in the commands that are shown")
		f.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		if err := c.need(args, 2); err != nil {
			return err
		}
		s, err := start(ctx, &f, args[0], "all", defaultCache)
		if err != nil {
			return err
		}
		defer s.close()
		im, err := s.cat.Lookup(ctx, args[1])
		if err != nil {
			return err
		}
		out := s.show(ctx, im)
		if out.Status != "error" {
			out.target(mount)
		}
		if asJSON {
			err = printJSON(out)
		} else {
			err = out.print()
		}
		if err == nil && out.Status == "error" {
			err = fmt.Errorf("image %q: %w", im.Name, errBadImages)
		}
		return err
	}
	return c
}

func (s *session) show(ctx context.Context, im *catalog.Image) *showImage {
	out := &showImage{
		ID: catalog.FormatID(im.ID), Name: im.Name, Status: im.Status, Modified: im.ModTime.UTC(),
		Tags: im.Tags, Properties: im.Props, Disks: []showDisk{},
	}
	if !im.Created.IsZero() {
		out.Created = &im.Created
	}
	if im.Err != nil {
		out.Status, out.Error = "error", im.Err.Error()
	}
	for _, d := range im.Disks {
		sd := showDisk{
			Number: d.Number, Format: d.Imported(), Stored: d.Format, Declared: d.Declared,
			Modified: d.Modified, Object: d.Object.Key, ETag: d.Object.ETag,
			SHA256: d.SHA256, Size: d.Object.Size, VirtualSize: d.VirtualSize,
		}
		if d.Original != nil {
			sd.Original = d.Original.SHA256
		}
		if im.Err == nil {
			if err := s.showDisk(ctx, im, d, &sd); err != nil {
				out.Status, sd.Error = "error", err.Error()
			}
		}
		out.Disks = append(out.Disks, sd)
	}
	if out.Status != "error" {
		if err := s.showPackages(ctx, im, out); err != nil {
			out.Status, out.Error = "error", err.Error()
		}
	}
	return out
}

func (s *session) showPackages(ctx context.Context, im *catalog.Image, out *showImage) error {
	for _, p := range s.packages {
		sf := showFile{Name: im.Name + "." + p.Name()}
		switch f, err := s.opener.Package(ctx, im, p); {
		case errors.Is(err, image.ErrNotShown):
			sf.Hidden = reason(err)
		case err != nil:
			return err
		default:
			sf.Size = f.Size()
		}
		out.Packages = append(out.Packages, sf)
	}
	return nil
}

// reason is why a file is not shown, for people.
func reason(err error) string {
	if _, s, ok := strings.Cut(err.Error(), codec.ErrNotPossible.Error()+": "); ok {
		return s
	}
	return strings.TrimPrefix(err.Error(), image.ErrNotShown.Error()+": ")
}

// target says for every target how the image gets there.
func (im *showImage) target(mount string) {
	hidden := make(map[string]string) // why a file is not shown
	for _, d := range im.Disks {
		for _, f := range d.Files {
			hidden[im.Name+"/"+f.Name] = f.Hidden
		}
	}
	for _, f := range im.Packages {
		hidden[im.Name+"/"+f.Name] = f.Hidden
	}
	if len(im.Disks) == 0 {
		return
	}
	for _, t := range targets {
		n := im.Disks[0].Number // the others go the same way
		st := showTarget{Name: t.name, File: t.file(im.Name, n), Asked: !t.whole() && !isShown(t.view)}
		if why, known := hidden[st.File]; !known || why != "" {
			st.Hidden = cmp.Or(why, "not shown")
		} else {
			st.Command = t.line(mount, im.Name, n)
		}
		im.Targets = append(im.Targets, st)
	}
}

func (s *session) showDisk(ctx context.Context, im *catalog.Image, d catalog.Disk, sd *showDisk) error {
	o, err := s.opener.Open(ctx, im, d)
	if err != nil {
		return err
	}
	sd.VirtualSize, sd.Allocated, sd.Notes = o.Size, o.Data, o.Notes
	for _, v := range s.opener.ViewsOf(d) {
		sf := showFile{Name: fmt.Sprintf("disk%d.%s", d.Number, v.Name())}
		switch f, err := o.File(ctx, v); {
		case errors.Is(err, image.ErrNotShown):
			sf.Hidden = reason(err)
		case err != nil:
			return err
		default:
			sf.Size, sf.Stored = f.Size(), f.Stored()
		}
		sd.Files = append(sd.Files, sf)
	}
	return nil
}

func (im *showImage) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	row := func(k, v string) {
		if v != "" {
			fmt.Fprintf(w, "%s\t%s\n", k, v)
		}
	}
	row("ID", im.ID)
	row("Name", im.Name)
	row("Status", im.Status)
	row("Error", im.Error)
	if im.Created != nil {
		row("Created", im.Created.UTC().Format(time.RFC3339))
	}
	row("Modified", im.Modified.Format(time.RFC3339))
	row("Tags", strings.Join(im.Tags, ", "))
	keys := make([]string, 0, len(im.Properties))
	for k := range im.Properties {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		row("Property "+k, im.Properties[k])
	}
	for _, d := range im.Disks {
		fmt.Fprintln(w) // ends the columns: each disk has its own
		row(fmt.Sprintf("Disk %d", d.Number), fmt.Sprintf("%s, %s", d.Object, d.Stored))
		if d.Format != d.Stored {
			row("  Copied in as", d.Format)
		}
		if d.Declared {
			row("  Declared", "its content was not looked at")
		}
		if !d.Modified.IsZero() {
			row("  Modified", d.Modified.UTC().Format(time.RFC3339))
		}
		row("  Size", fmt.Sprintf("%s (%d)", iec(d.Size), d.Size))
		if d.VirtualSize > 0 || d.Files != nil {
			row("  Virtual Size", fmt.Sprintf("%s (%d)", iec(d.VirtualSize), d.VirtualSize))
		}
		if d.Files != nil {
			row("  Allocated", iec(d.Allocated))
		}
		row("  ETag", d.ETag)
		row("  SHA-256", d.SHA256)
		row("  SHA-256 of "+d.Format, d.Original)
		for _, n := range d.Notes {
			row("  Note", n)
		}
		row("  Error", d.Error)
		for _, f := range d.Files {
			switch {
			case f.Hidden != "":
				row("  "+f.Name, "not shown: "+f.Hidden)
			case f.Stored:
				row("  "+f.Name, fmt.Sprintf("%d bytes, as it was copied in", f.Size))
			default:
				row("  "+f.Name, fmt.Sprintf("%d bytes", f.Size))
			}
		}
	}
	files := func(list []showFile) {
		for _, f := range list {
			if f.Hidden != "" {
				row("  "+f.Name, "not shown: "+f.Hidden)
			} else {
				row("  "+f.Name, fmt.Sprintf("%d bytes", f.Size))
			}
		}
	}
	if len(im.Packages) > 0 {
		fmt.Fprintln(w)
		row("Packages", "all disks in one file")
		files(im.Packages)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return im.printTargets()
}

// isShown reports whether a mount shows a view without being asked.
func isShown(view string) bool {
	return slices.ContainsFunc(all.Shown, func(v codec.View) bool { return v.Name() == view })
}

// printTargets prints a paragraph for each target: its line may be long, and is
// there to be copied.
func (im *showImage) printTargets() error {
	if len(im.Targets) == 0 {
		return nil
	}
	title := "For"
	if len(im.Disks) > 1 {
		title = "For (of a disk: the first; the others go the same way)"
	}
	fmt.Println("\n" + title)
	for _, t := range im.Targets {
		text := t.Command
		if t.Hidden != "" {
			text = "not possible: " + t.Hidden
		}
		file := t.File[strings.LastIndexByte(t.File, '/')+1:]
		if t.Asked {
			file += ", with mount --formats all"
		}
		if _, err := fmt.Printf("  %s: %s\n    %s\n", t.Name, file, text); err != nil {
			return err
		}
	}
	return nil
}
