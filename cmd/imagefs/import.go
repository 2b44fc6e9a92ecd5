package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"imagefs/codec"
	"imagefs/codec/all"
	"imagefs/fs/stage"
	"imagefs/remote/catalog"
)

// importFlags are what an import can be told.
type importFlags struct {
	store   storeFlags
	spool   spoolFlags
	name    string
	format  string
	pack    string // kind of package that the source is; "" for disks
	disk    int
	replace bool
	quiet   bool
	json    bool
}

func importCommand() *command {
	f := &importFlags{}
	c := &command{
		name: "import", args: "STORE SOURCE...", summary: "copy files into a store as the disks of an image",
		help: `The sources become disk 0, 1 and so on of one image. Each is checked before
the first is stored. A source is a file of this machine, "-" for standard input
(which needs --name and --disk-format), an http:// or https:// URL, or an object
s3://BUCKET/KEY of the S3 service that the flags name. What is not a local file
is fetched into the spool first.

A package, .ova or .oci, is a whole image with all its disks and what it says of
the machine: it is imported alone, and all of it appears at once.

The format is what the name's extension says, and the content has to agree; a
name without one goes by content. Say --disk-format raw for a raw disk whose
content is not to be looked at. A raw disk is stored compressed, and read back
exact; every other file is stored as it is.

With --json, standard output gets one JSON object per line: event (fetching,
checking, note, encoding, storing, progress, done, error), source, image, disk,
format, bytes, total, sha256 (of the source; not of one that is nearly all
holes), note, error. Ends with code 5 if a source is refused, 4 if one is not there.

Example: imagefs import --name centos7 s3://images/prod ./centos7.qcow2
         curl -s https://example.org/d.raw.xz | xz -d | imagefs import --name d --disk-format raw ./store -
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		set.StringVar(&f.name, "name", "", "name of the image (default: that of the first source, without extension)")
		set.IntVar(&f.disk, "disk", 0, "number of the first source's disk")
		set.StringVar(&f.format, "disk-format", "", "format of the sources, in place of the extensions of their names; raw: without a look at the content")
		set.BoolVar(&f.replace, "replace", false, "replace disks that are there")
		set.BoolVarP(&f.quiet, "quiet", "q", false, "no progress, only errors")
		set.BoolVar(&f.json, "json", false, "print JSON, one event per line")
		f.spool.addFolder(set)
		f.store.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		if len(args) < 2 {
			return usagef("import takes %s, not %d arguments", c.args, len(args))
		}
		return f.run(ctx, args[0], args[1:])
	}
	return c
}

// importing is one import under way.
type importing struct {
	*importFlags
	session *session
	im      *stage.Importer
	scratch *scratch
	report  *reporter
	name    string
	inputs  []*input
	pieces  []*input // of VMDKs among the inputs: no disks by themselves
}

// run imports what the arguments name.
func (f *importFlags) run(ctx context.Context, storeName string, args []string) (err error) {
	report := newReporter(f.quiet, f.json)
	defer func() { report.failed(event{}, err) }() // what nobody told of yet
	sources, err := f.sources(args)
	if err != nil {
		return err
	}
	name, err := f.image(sources)
	if err != nil {
		return err
	}
	root, err := f.spool.root()
	if err != nil {
		return err
	}
	s, err := start(ctx, &f.store, storeName, "", defaultCache)
	if err != nil {
		return err
	}
	defer s.close()
	im, err := stage.NewImporter(s.store, s.cat, all.Formats, all.Packages)
	if err != nil {
		return err
	}
	i := &importing{
		importFlags: f, session: s, im: im, name: name,
		scratch: newScratch(root), report: report,
	}
	defer i.close()
	i.sort(sources)
	if err = i.all(ctx); err != nil && ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	return err
}

// sort tells disks, which are numbered in order, from the pieces of disks. One
// source alone is a disk.
func (i *importing) sort(sources []*source) {
	whole := slices.ContainsFunc(sources, func(s *source) bool { return !stage.IsPiece(s.base) })
	for _, src := range sources {
		if whole && stage.IsPiece(src.base) {
			i.pieces = append(i.pieces, &input{source: src})
			continue
		}
		in := &input{source: src, number: i.disk + len(i.inputs)}
		in.job.Piece = i.piece
		i.inputs = append(i.inputs, in)
	}
}

// piece finds a piece by the name that a descriptor has for it.
func (i *importing) piece(name string) (stage.PieceFile, bool) {
	for _, in := range i.pieces {
		if in.base == name {
			in.joined = true
			return stage.PieceFile{File: in.job.File, Size: in.job.Size}, true
		}
	}
	return stage.PieceFile{}, false
}

// used is an error if a piece belongs to none of the disks.
func (i *importing) used(_ context.Context, in *input) error {
	if in.joined {
		return nil
	}
	return fmt.Errorf("by its name it is a piece of a VMDK, but none of the other sources is a descriptor that names it: import it alone if it is a disk")
}

// sources reads the arguments.
func (f *importFlags) sources(args []string) ([]*source, error) {
	if f.format != "" {
		ext := strings.ToLower(f.format)
		format, isDisk := exts.Disks[ext]
		pack, isPackage := exts.Packages[ext]
		if !isDisk && !isPackage {
			return nil, usagef("--disk-format %q: choose of %s", f.format, strings.Join(exts.All(), ", "))
		}
		f.format, f.pack = format, pack
	}
	var list []*source
	piped := false
	for _, arg := range args {
		src, err := parseSource(arg, &f.store)
		if err != nil {
			return nil, err
		}
		switch {
		case src.stdin && piped:
			return nil, usagef("standard input can be only one of the sources")
		case src.stdin && (f.format == "" || f.name == ""):
			return nil, usagef("standard input has no name: say --name and --disk-format")
		case src.base == "" && len(list) == 0 && f.name == "":
			return nil, usagef("source %q has no name in its path: say --name", src.label)
		}
		piped = piped || src.stdin
		list = append(list, src)
	}
	return list, f.packages(list)
}

// packages finds a package among the sources, which is a whole image: nothing
// else can come with it.
func (f *importFlags) packages(list []*source) error {
	for _, src := range list {
		if pack := exts.Packages[src.extension()]; pack != "" && f.format == "" {
			f.pack = pack
		}
	}
	switch {
	case f.pack == "":
	case len(list) > 1:
		return usagef("a package (%s) holds a whole image: import it alone", f.pack)
	case f.disk != 0 || f.replace:
		return usagef("a package (%s) holds a whole image: --disk and --replace are for disks", f.pack)
	}
	return nil
}

// image is the name of the image, once it and its disks' numbers are possible.
func (f *importFlags) image(sources []*source) (string, error) {
	name := f.name
	if name == "" {
		first := max(slices.IndexFunc(sources, func(s *source) bool { return !stage.IsPiece(s.base) }), 0)
		name = sources[first].stem()
	}
	if err := catalog.CheckName(name); err != nil {
		return "", usagef("%v: say another --name", err)
	}
	for n := range sources {
		if _, err := stage.ParseName(exts, name, fmt.Sprintf("disk%d.raw", f.disk+n)); err != nil {
			return "", usagef("--disk %d and %d sources: %v", f.disk, len(sources), err)
		}
	}
	return name, nil
}

// all fetches, checks and stores all sources, in this order.
func (i *importing) all(ctx context.Context) error {
	if err := i.present(ctx); err != nil {
		i.report.failed(event{Image: i.name}, err)
		return err
	}
	for _, s := range []struct {
		step func(context.Context, *input) error
		of   []*input
	}{{i.fetch, i.pieces}, {i.fetch, i.inputs}, {i.check, i.inputs}, {i.used, i.pieces}, {i.put, i.inputs}} {
		for n, in := range s.of {
			if err := s.step(ctx, in); err != nil {
				err = fmt.Errorf("import %q: %w", in.label, i.outcome(n, err))
				i.report.failed(i.event(in), err)
				return err
			}
		}
	}
	return nil
}

// event begins an event of an input.
func (i *importing) event(in *input) event {
	if i.pack != "" {
		return event{Source: in.label, Image: i.name, Format: i.pack}
	}
	return event{Source: in.label, Image: i.name, Disk: &in.number, Format: in.job.Format}
}

// present looks up what the disks are now.
func (i *importing) present(ctx context.Context) error {
	for _, in := range i.inputs {
		in.job.Target = stage.Target{Image: i.name, Number: in.number, Package: i.pack}
	}
	if !i.session.cat.Has(i.name) {
		return nil
	}
	im, err := i.session.cat.Lookup(ctx, i.name)
	if err != nil {
		return err
	}
	if im.Err != nil && len(im.Disks) == 0 {
		return fmt.Errorf("image %q is there, and cannot be used: %w: %w", i.name, errBadImages, im.Err)
	}
	if i.pack != "" {
		return fmt.Errorf("image %q is there: remove it first with imagefs rm, or say another --name: %w", i.name, fs.ErrExist)
	}
	for _, in := range i.inputs {
		d, ok := im.Disk(in.number)
		if ok && !i.replace {
			return fmt.Errorf("image %q has a disk %d already: say --replace to replace it, --disk N to add another, or another --name: %w",
				i.name, in.number, fs.ErrExist)
		}
		in.job.Base = d.Object.Key
	}
	return nil
}

// fetch opens a source, and brings it to this machine where it must.
func (i *importing) fetch(ctx context.Context, in *input) error {
	if in.fetch != nil {
		i.report.event("fetching", i.event(in))
	}
	if err := in.open(ctx, i.scratch, i.report.step("fetching", i.event(in))); err != nil {
		return err
	}
	if i.pack != "" {
		return nil
	}
	in.job.Format = in.promise()
	if i.format != "" {
		in.job.Format, in.job.Declared = i.format, i.format == "raw"
	}
	return nil
}

func (i *importing) check(ctx context.Context, in *input) error {
	e := i.event(in)
	e.Bytes = in.job.Size
	i.report.event("checking", e)
	checked, err := i.im.Check(ctx, &in.job)
	if changed := in.unchanged(); changed != nil {
		return changed
	}
	if err != nil && i.format != "" && errors.Is(err, codec.ErrFormat) {
		return fmt.Errorf("with --disk-format %s in place of the name's extension: %w", i.format, err)
	}
	if err != nil {
		return err
	}
	if in.checked = checked; i.pack == "" {
		in.job.Format = checked.Format()
	}
	for _, note := range checked.Notes() {
		e := i.event(in)
		e.Note = note
		i.report.event("note", e)
	}
	return nil
}

func (i *importing) put(ctx context.Context, in *input) error {
	e := i.event(in)
	e.Bytes = in.job.Size
	var err error
	if in.job.Scratch, err = i.scratch.folder(); err != nil {
		return err
	}
	if in.job.Format == "raw" {
		i.report.event("encoding", e)
		encoded := i.report.step("encoding", e)
		in.job.Encoding = func(done int64) { encoded(done, in.job.Size) }
	}
	var started bool
	in.job.Starting = func(string) error { // also for an index, which is small
		if !started {
			i.report.event("storing", e)
			in.job.Progress = i.report.step("storing", e)
		}
		started = true
		return nil
	}
	in.job.Committing = func() error {
		for _, p := range i.pieces {
			if err := p.unchanged(); err != nil {
				return fmt.Errorf("%q: %w", p.label, err)
			}
		}
		return in.unchanged()
	}
	im, err := in.checked.Import(ctx)
	if errors.Is(err, catalog.ErrConflict) {
		return fmt.Errorf("%w: look at what is there, and say --replace to replace it", err)
	}
	if changed := in.unchanged(); err != nil && changed != nil {
		return changed
	}
	if err != nil {
		return err
	}
	in.stored = true
	if d, ok := im.Disk(in.number); ok && i.pack == "" {
		e.SHA256 = d.SHA256
		if d.Original != nil {
			e.SHA256 = d.Original.SHA256
		}
	}
	i.report.event("done", e)
	return nil
}

// outcome adds to the error of input n which disks are there all the same.
func (i *importing) outcome(n int, err error) error {
	if len(i.inputs) == 1 {
		return err
	}
	if !i.inputs[0].stored {
		return fmt.Errorf("%w (nothing was imported)", err)
	}
	return fmt.Errorf("%w (disks %d to %d of image %q are stored, %d to %d are not)", err,
		i.disk, i.disk+n-1, i.name, i.disk+n, i.disk+len(i.inputs)-1)
}

func (i *importing) close() {
	i.report.close()
	for _, in := range slices.Concat(i.inputs, i.pieces) {
		in.close()
	}
	i.scratch.remove()
}
