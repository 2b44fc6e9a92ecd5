package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"imagefs/codec/all"
)

// TestTargetsAreInTheReadme: the list that show prints and the README's are one.
func TestTargetsAreInTheReadme(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	views := make(map[string]bool)
	for _, v := range all.Views {
		views[v.Name()] = true
	}
	for _, p := range all.Packages {
		views[p.Name()] = true
	}
	for _, tt := range targets {
		if !views[tt.view] {
			t.Errorf("%s: no view %q", tt.name, tt.view)
		}
		file, star := "disk0."+tt.view, ""
		if tt.whole() {
			file = "NAME." + tt.view
		} else if !isShown(tt.view) {
			star = " *"
		}
		row := fmt.Sprintf("| %s | `%s`%s | `%s` |\n", tt.name, file, star, tt.command)
		if !strings.Contains(string(b), row) {
			t.Errorf("the README has no row %s", row)
		}
	}
}

func TestTargetLine(t *testing.T) {
	tt := target{"a place", "vmdk", "put FILE as NAME.vmdk"}
	for _, c := range []struct{ mount, image, want string }{
		{"/mnt", "web", "put /mnt/images/web/disk1.vmdk as web.vmdk"},
		{"/my mount", "web", "put '/my mount/images/web/disk1.vmdk' as web.vmdk"},
		{"/mnt", "it's $HOME", `put '/mnt/images/it'\''s $HOME/disk1.vmdk' as 'it'\''s $HOME'.vmdk`},
	} {
		if got := tt.line(c.mount, c.image, 1); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
	tt.view = "ova"
	if got := tt.line("/mnt", "web", 1); got != "put /mnt/images/web/web.ova as web.vmdk" {
		t.Errorf("got %s", got)
	}
}
