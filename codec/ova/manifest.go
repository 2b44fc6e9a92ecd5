package ova

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"regexp"
	"strings"

	"imagefs/codec"
	"imagefs/codec/tarball"
)

// digest is one line of a manifest.
type digest struct {
	algorithm string
	member    *tarball.Member
	sum       string // hex, small letters
}

var algorithms = map[string]func() hash.Hash{"SHA1": sha1.New, "SHA256": sha256.New, "SHA512": sha512.New}

// manifestLine is "SHA256(name)= hex", with spaces as any writer puts them.
var manifestLine = regexp.MustCompile(`^([A-Za-z0-9-]+)\s*\((.+)\)\s*=\s*([0-9A-Fa-f]+)$`)

// readManifest reads the digests, each of a member that is there, one each.
func (a *archive) readManifest(ctx context.Context, src codec.Source) ([]digest, error) {
	text, err := a.text(ctx, src, a.manifest)
	if err != nil {
		return nil, err
	}
	var all []digest
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		f := manifestLine.FindStringSubmatch(line)
		if f == nil {
			return nil, codec.Corruptf("manifest %q, line %d is no digest: %.80q", a.manifest.Name, n, line)
		}
		d := digest{strings.ReplaceAll(strings.ToUpper(f[1]), "-", ""), tarball.Find(a.members, f[2]), strings.ToLower(f[3])}
		h, ok := algorithms[d.algorithm]
		switch {
		case !ok:
			return nil, codec.Unsupportedf("manifest %q, line %d: unknown digest %.20q", a.manifest.Name, n, f[1])
		case len(d.sum) != 2*h().Size():
			return nil, codec.Corruptf("manifest %q, line %d: a %s of %d digits", a.manifest.Name, n, d.algorithm, len(d.sum))
		case d.member == nil:
			return nil, codec.Corruptf("manifest %q, line %d: %.200q is no member of the archive", a.manifest.Name, n, f[2])
		case seen[d.member.Name]:
			return nil, codec.Corruptf("manifest %q, line %d: a second digest of %q", a.manifest.Name, n, f[2])
		}
		seen[d.member.Name] = true
		all = append(all, d)
	}
	return all, nil
}

// Verify compares the members with the manifest, each read once. A package
// without one passes. Its signature, the .cert, is not checked.
func (pack) Verify(ctx context.Context, src codec.Source) error {
	a, err := list(ctx, src)
	if err != nil {
		return fmt.Errorf("verify ova: %w", err)
	}
	if a.manifest == nil {
		return nil
	}
	all, err := a.readManifest(ctx, src)
	if err != nil {
		return fmt.Errorf("verify ova: %w", err)
	}
	buf := make([]byte, 1<<20)
	for _, d := range all {
		h := algorithms[d.algorithm]()
		for off := int64(0); off < d.member.Size; {
			p := buf[:min(int64(len(buf)), d.member.Size-off)]
			if err := codec.ReadFull(ctx, src, p, d.member.Off+off, "member"); err != nil {
				return fmt.Errorf("verify ova: %w", err)
			}
			h.Write(p)
			off += int64(len(p))
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != d.sum {
			return fmt.Errorf("verify ova: %w", codec.Corruptf("manifest: the %s of %q is %s, the member has %s", d.algorithm, d.member.Name, d.sum, got))
		}
	}
	return nil
}
