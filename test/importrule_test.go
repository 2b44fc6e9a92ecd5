package test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "imagefs"

// A rule says what a package of this module may import from it. A path that
// ends in "/..." stands for everything below the folder, "/*" for one level.
type rule struct {
	pkg string
	may []string
	why string
}

// The first rule that matches a package holds.
var rules = []rule{
	{"codec/all", []string{"codec", "codec/*"}, "it is the list of formats"},
	{"codec/codectest", []string{"codec", "codec/*"}, "it holds every format against the same suite"},
	{"codec/ova", []string{"codec", "codec/tarball", "codec/vmdk"}, "a package is a tar archive of disks in one format"},
	{"codec/oci", []string{"codec", "codec/tarball", "codec/qcow2"}, "a package is a tar archive of disks in one format"},
	{"codec/*", []string{"codec"}, "a format knows what all formats share, and no other format"},
	{"codec", nil, "codec is bytes and arithmetic: it knows no store, no cache and no FUSE"},
	{"cache", nil, "the cache holds blocks of anything: it knows no format, no store and no FUSE"},
	{"cache/disk", nil, "it keeps blocks of anything in files: it knows no format, no store and no FUSE"},
	{"remote/*", []string{"remote"}, "a store and the catalog know what all stores share, and no other store"},
	{"remote", nil, "remote is objects: it knows no format, no cache and no FUSE"},
	{"fs/image", []string{"codec", "codec/all", "codec/raw", "cache", "remote", "remote/catalog"}, "it opens a catalog entry in a format; stored bytes are shown as raw ones"},
	{"fs/stage", []string{"codec", "codec/qcow2", "codec/vmdk", "remote", "remote/catalog"}, "it imports files, raw ones as compressed qcow2, and joins VMDKs of several files"},
	{"fs", []string{"fs/image", "fs/stage", "remote/catalog", "remote", "cache", "codec"}, "nodes are thin: formats and stores are behind fs/image and fs/stage"},
	{"cmd/imagefs", []string{"fs", "fs/*", "cache", "cache/disk", "codec", "codec/all", "remote", "remote/*"}, "cmd assembles the program; single formats come through codec/all"},
	{"test", nil, "the tests here see the program as its users do"},
}

// Packages that only tests import, and that tests of any package may import.
var testOnly = []string{"codec/codectest", "remote/remotetest", "remote/mem"}

// A third-party module has one home, so that it can be replaced there.
var homes = []rule{
	{"github.com/hanwen/go-fuse/v2", []string{"fs"}, "file-system logic must be testable without a mount"},
	{"github.com/dgraph-io/ristretto/v2", []string{"cache"}, "the cache's policy is an inner matter of the cache"},
	{"github.com/minio/minio-go/v7", []string{"remote/s3"}, "no S3 type or error may leave remote/s3"},
	{"github.com/spf13/pflag", []string{"cmd/imagefs"}, "only the command line knows flags"},
	{"github.com/klauspost/compress", []string{"codec/..."}, "compression belongs to the formats"},
	{"golang.org/x/sys", []string{"fs", "fs/stage", "remote/dir", "cache", "cache/disk", "cmd/imagefs"}, "system calls that the standard library lacks: seek and locks of files, mounts, memory limits"},
}

// goPackage is what these tests need of "go list -json".
type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestImportRules(t *testing.T) {
	for _, p := range packages(t) {
		name := short(p.ImportPath)
		i := slices.IndexFunc(rules, func(r rule) bool { return matches(name, r.pkg) })
		if i < 0 {
			t.Errorf("%s: no rule says what this package may import: add one to rules, with its reason", name)
			continue
		}
		for _, imp := range p.Imports {
			checkImport(t, name, imp, rules[i], false)
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			checkImport(t, name, imp, rules[i], true)
		}
	}
}

// checkImport reports an import of package name that the rules do not allow.
func checkImport(t *testing.T, name, imp string, r rule, inTest bool) {
	t.Helper()
	switch {
	case imp == "C":
		t.Errorf("%s imports C: the program is built without cgo", name)

	case imp == module || strings.HasPrefix(imp, module+"/"):
		to := short(imp)
		isTestOnly := slices.Contains(testOnly, to)
		switch {
		case to == name: // a package's external test
		case inTest && isTestOnly:
		case inTest && (to == "codec/all" || to == "remote/dir"):
			// What is handed formats or a store is tested with real ones.
		case inTest && sameTree(name, to) && !strings.HasPrefix(name, "test"):
			// The tests of a format may convert from another, those of
			// the catalog need a store.
		case isTestOnly:
			t.Errorf("%s imports %s outside a test: it is a test suite", name, to)
		case !matchesAny(to, r.may):
			t.Errorf("%s imports %s, but may import only %v: %s", name, to, r.may, r.why)
		}

	case strings.Contains(strings.SplitN(imp, "/", 2)[0], "."):
		i := slices.IndexFunc(homes, func(h rule) bool { return imp == h.pkg || strings.HasPrefix(imp, h.pkg+"/") })
		if i < 0 {
			t.Errorf("%s imports %s: a further dependency is a decision: give it a home in this table, with its reason", name, imp)
			return
		}
		if !matchesAny(name, homes[i].may) {
			t.Errorf("%s imports %s, whose home is %v: %s", name, imp, homes[i].may, homes[i].why)
		}
	}
}

// The rules themselves must be able to fail.
func TestImportRulesCatch(t *testing.T) {
	for _, c := range []struct {
		pkg, pattern string
		want         bool
	}{
		{"codec", "codec/*", false},
		{"codec/vmdk", "codec/*", true},
		{"codec/vmdk/x", "codec/*", false},
		{"codec/vmdk/x", "codec/...", true},
		{"codec", "codec/...", true},
		{"codecs", "codec/...", false},
		{"fs", "fs", true},
	} {
		if got := matches(c.pkg, c.pattern); got != c.want {
			t.Errorf("matches(%q, %q) = %v, want %v", c.pkg, c.pattern, got, c.want)
		}
	}
	if sameTree("codec/vmdk", "remote") || !sameTree("codec/vmdk", "codec/raw") {
		t.Error("sameTree does not tell codec from remote")
	}
}

func TestTopLevel(t *testing.T) {
	want := []string{
		".ci", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "Makefile", "README.md",
		"cache", "cmd", "codec", "fs", "go.mod", "go.sum", "remote", "test",
	}
	ignored := []string{".git", "bin", "demo"} // made by git and make
	entries, err := os.ReadDir(repoRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if n := e.Name(); !slices.Contains(ignored, n) && !strings.HasSuffix(n, ".test") && !strings.HasSuffix(n, ".out") {
			got = append(got, n)
		}
	}
	slices.Sort(got)
	for _, n := range got {
		if !slices.Contains(want, n) {
			t.Errorf("%s stands at the top: its place is in one of the folders, or in this list with a reason", n)
		}
	}
	for _, n := range want {
		if !slices.Contains(got, n) {
			t.Errorf("%s is missing at the top", n)
		}
	}
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = repoRoot(t)
	out, err := cmd.Output()
	if err != nil {
		if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
			t.Fatalf("go list: %v\n%s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// repoRoot is the folder of go.mod.
func repoRoot(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func short(path string) string { return strings.TrimPrefix(path, module+"/") }

func matchesAny(pkg string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(pkg, p) })
}

func matches(pkg, pattern string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == dir || strings.HasPrefix(pkg, dir+"/")
	}
	if dir, ok := strings.CutSuffix(pattern, "/*"); ok {
		return filepath.Dir(pkg) == dir
	}
	return pkg == pattern
}

func sameTree(a, b string) bool {
	return strings.SplitN(a, "/", 2)[0] == strings.SplitN(b, "/", 2)[0]
}
