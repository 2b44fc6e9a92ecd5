package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"imagefs/fs/stage"
	"imagefs/remote/catalog"
)

// What a check finds of an image or a disk.
const (
	statusOK      = "ok"
	statusDamaged = "damaged"
	statusUnknown = "unknown" // the store did not let it be looked at
)

// checkReport is all that a check prints as JSON.
type checkReport struct {
	Full    bool           `json:"full"`
	Images  []*checkImage  `json:"images"`
	Garbage []checkGarbage `json:"garbage,omitempty"` // objects of disks that no image names
	Damaged int            `json:"damaged"`           // images
	Unknown int            `json:"unknown"`           // images

	passing error // why something is unknown
	quiet   bool  // nothing is printed before the end
}

type checkImage struct {
	Name    string      `json:"name"`
	ID      string      `json:"id"`
	Deleted bool        `json:"deleted,omitempty"`
	Status  string      `json:"status"`
	Error   string      `json:"error,omitempty"`
	Disks   []checkDisk `json:"disks"`

	passing error
}

type checkDisk struct {
	Number int    `json:"number"`
	Format string `json:"disk_format"`
	Object string `json:"object"`
	Size   int64  `json:"size"`
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`

	index string // key of the object beside it; "" if there is none
}

type checkGarbage struct {
	Key      string    `json:"key"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
}

// checkParallel is how many images are checked at once.
const checkParallel = 4

func checkCommand() *command {
	var f storeFlags
	var full, asJSON bool
	c := &command{
		name: "check", args: "STORE [IMAGE...]", summary: "check the images of a store for damage",
		help: `Reads every entry, and of every disk the object's size and all tables of its
format, each offset and length checked. --full reads all bytes: it decodes what
is encoded and compares SHA-256 sums with those that imports recorded, of the
stored objects and of raw disks that are stored compressed. Without IMAGE it
also lists the objects below disks/ that no image names: that is no damage,
"imagefs gc" removes them, but it may be an import under way. Ends with code 5
if anything is damaged.

Example: imagefs check --full s3://images/prod centos7
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		set.BoolVar(&full, "full", false, "read and compare all bytes")
		set.BoolVar(&asJSON, "json", false, "print JSON")
		f.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		if len(args) < 1 {
			return usagef("check takes %s, not %d arguments", c.args, len(args))
		}
		s, err := start(ctx, &f, args[0], "", defaultCache)
		if err != nil {
			return err
		}
		defer s.close()
		out := &checkReport{Full: full, Images: []*checkImage{}, quiet: asJSON}
		if len(args) > 1 {
			err = s.checkNamed(ctx, args[1:], out)
		} else {
			err = s.checkAll(ctx, out)
		}
		if err != nil {
			return err
		}
		if asJSON {
			err = printJSON(out)
		} else {
			err = out.end()
		}
		switch {
		case err != nil:
			return err
		case out.Damaged > 0:
			return fmt.Errorf("%s damaged: %w", count(out.Damaged, "image"), errBadImages)
		}
		return out.passing
	}
	return c
}

// checkNamed checks some images.
func (s *session) checkNamed(ctx context.Context, names []string, out *checkReport) error {
	for _, name := range names {
		if !s.cat.Has(name) {
			return fmt.Errorf("image %q: %w", name, fs.ErrNotExist)
		}
	}
	return s.checkImages(ctx, slices.Compact(slices.Sorted(slices.Values(names))), out)
}

// checkAll checks all images and looks for garbage.
func (s *session) checkAll(ctx context.Context, out *checkReport) error {
	// Objects before entries: what is committed meanwhile is no garbage.
	var objects []checkGarbage
	for o, err := range s.store.List(ctx, stage.Object) {
		if err != nil {
			return err
		}
		objects = append(objects, checkGarbage{o.Key, o.Size, o.ModTime.UTC()})
	}
	if _, err := s.cat.Refresh(ctx); err != nil {
		return err
	}
	if err := s.checkImages(ctx, s.cat.Names(), out); err != nil {
		return err
	}
	deleted, err := s.cat.Deleted(ctx)
	if err != nil {
		return err
	}
	readable := true
	named := make(map[string]bool) // also by what was deleted
	for _, im := range out.Images {
		readable = readable && len(im.Disks) > 0
		for _, d := range im.Disks {
			named[d.Object], named[d.index] = true, true
		}
	}
	for _, im := range deleted {
		readable = readable && im.Err == nil
		for _, d := range im.Disks {
			named[d.Object.Key] = true
			if d.Index != nil {
				named[d.Index.Key] = true
			}
		}
		if im.Err != nil {
			err := out.add(&checkImage{
				Name: im.Name, ID: catalog.FormatID(im.ID), Deleted: true, Status: statusDamaged, Error: im.Err.Error(), Disks: []checkDisk{},
			})
			if err != nil {
				return err
			}
		}
	}
	for _, o := range objects {
		if readable && !named[o.Key] { // an entry that is not may name any
			out.Garbage = append(out.Garbage, o)
		}
	}
	return nil
}

// checkImages checks images, some at a time, and reports them in order.
func (s *session) checkImages(ctx context.Context, names []string, out *checkReport) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Results in order; its capacity and the one being waited for bound the
	// checks under way.
	pending := make(chan chan *checkImage, checkParallel-1)
	go func() {
		defer close(pending)
		for _, name := range names {
			ch := make(chan *checkImage, 1)
			select {
			case pending <- ch:
			case <-ctx.Done():
				return
			}
			go func() { ch <- s.checkImage(ctx, name, out.Full) }()
		}
	}()
	for ch := range pending {
		im := <-ch
		if im == nil || ctx.Err() != nil {
			continue // it vanished meanwhile
		}
		if err := out.add(im); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// checkImage checks one image; nil if it is not there any more.
func (s *session) checkImage(ctx context.Context, name string, full bool) *checkImage {
	out := &checkImage{Name: name, Status: statusOK, Disks: []checkDisk{}}
	im, err := s.cat.Lookup(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		out.Status, out.Error, out.passing = statusUnknown, err.Error(), err
		return out
	}
	out.ID = catalog.FormatID(im.ID)
	if im.Err != nil {
		out.Status, out.Error = statusDamaged, im.Err.Error()
	}
	for _, d := range im.Disks {
		cd := checkDisk{Number: d.Number, Format: d.Format, Object: d.Object.Key, Size: d.Object.Size, Status: statusOK}
		if d.Index != nil {
			cd.index = d.Index.Key
		}
		if cd.Object == "" {
			cd.Object = entryKey(im, d.Number)
		}
		err := s.checkDisk(ctx, d, full)
		var bad damage
		switch {
		case err == nil:
		case errors.As(err, &bad):
			cd.Status, out.Status = statusDamaged, statusDamaged
		default:
			cd.Status, out.passing = statusUnknown, err
			if out.Status == statusOK {
				out.Status = statusUnknown
			}
		}
		if err != nil {
			cd.Error = err.Error()
		}
		out.Disks = append(out.Disks, cd)
	}
	return out
}

// entryKey is the key of an object that is missing, as the entry says it.
func entryKey(im *catalog.Image, number int) string {
	if e, err := catalog.ParseEntry(im.JSON); err == nil {
		for _, d := range e.Disks {
			if d.Number == number {
				return d.Key
			}
		}
	}
	return ""
}

// add counts an image and prints it.
func (r *checkReport) add(im *checkImage) error {
	r.Images = append(r.Images, im)
	switch im.Status {
	case statusDamaged:
		r.Damaged++
	case statusUnknown:
		r.Unknown++
	}
	if r.passing == nil && im.passing != nil {
		r.passing = fmt.Errorf("image %q could not be checked: %w", im.Name, im.passing)
	}
	if r.quiet {
		return nil
	}
	name := im.Name
	if im.Deleted {
		name += " (deleted)"
	}
	if im.Error != "" {
		if err := checkLine(im.Status, name, im.Error); err != nil {
			return err
		}
	}
	for _, d := range im.Disks {
		what := fmt.Sprintf("%s, %s", d.Format, iec(d.Size))
		if d.Error != "" {
			what = d.Error
		}
		if err := checkLine(d.Status, fmt.Sprintf("%s disk %d", name, d.Number), what); err != nil {
			return err
		}
	}
	return nil
}

func checkLine(status, name, what string) error {
	_, err := fmt.Printf("%-7s  %s: %s\n", status, name, strings.ReplaceAll(what, "\n", "; "))
	return err
}

// end prints what there is beside the images.
func (r *checkReport) end() error {
	var bytes int64
	for _, g := range r.Garbage {
		bytes += g.Size
		if err := checkLine("garbage", g.Key, fmt.Sprintf("%s, since %s, no image names it", iec(g.Size), g.Modified.Format(time.RFC3339))); err != nil {
			return err
		}
	}
	line := fmt.Sprintf("%s checked: %d damaged", count(len(r.Images), "image"), r.Damaged)
	if r.Unknown > 0 {
		line += fmt.Sprintf(", %d could not be read", r.Unknown)
	}
	if len(r.Garbage) > 0 {
		line += fmt.Sprintf("; %s of garbage", iec(bytes))
	}
	_, err := fmt.Println(line)
	return err
}
