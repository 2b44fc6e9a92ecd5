package ova

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

type member struct {
	name string
	b    []byte
}

// tarOf is an archive as written by the standard library.
func tarOf(t testing.TB, f tar.Format, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Size: int64(len(m.b)), Mode: 0o644, Format: f, ModTime: time.Unix(1600000000, 0)}
		if f == tar.FormatPAX {
			h.PAXRecords = map[string]string{"comment": "x"}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		w.Write(m.b)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// vmdkOf is a small disk, other for every seed.
func vmdkOf(t testing.TB, seed uint64) []byte {
	t.Helper()
	b, err := codectest.ReadAll(packed(t, full(), codectest.Full(512, seed))[0].File)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// virtualBox is a descriptor as VirtualBox 7 exports it.
const virtualBox = `<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="` + nsRASD + `" xmlns:vssd="` + nsVSSD + `" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References>
    <File ovf:id="file1" ovf:href="box-disk001.vmdk"/>
    <File ovf:id="file2" ovf:href="box-disk002.vmdk"/>
  </References>
  <DiskSection>
    <Info>List of the virtual disks used in the package</Info>
    <Disk ovf:capacity="512" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized" vbox:uuid="55d7cc1e-0000-4000-8000-000000000001"/>
    <Disk ovf:capacity="1024" ovf:diskId="vmdisk2" ovf:fileRef="file2" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized" vbox:uuid="55d7cc1e-0000-4000-8000-000000000002"/>
  </DiskSection>
  <NetworkSection><Info>Logical networks used in the package</Info><Network ovf:name="NAT"><Description>Logical network used by this appliance.</Description></Network></NetworkSection>
  <VirtualSystem ovf:id="box">
    <Info>A virtual machine</Info>
    <ProductSection><Info>Meta-information about the installed software</Info><Product>p</Product></ProductSection>
    <OperatingSystemSection ovf:id="94">
      <Info>The kind of installed guest operating system</Info>
      <Description>Ubuntu_64</Description>
      <vbox:OSType ovf:required="false">Ubuntu_64</vbox:OSType>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements for a virtual machine</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>box</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>virtualbox-2.2</vssd:VirtualSystemType>
      </System>
      <Item><rasd:Caption>2 virtual CPU</rasd:Caption><rasd:Description>Number of virtual CPUs</rasd:Description><rasd:ElementName>2 virtual CPU</rasd:ElementName><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ElementName>2048 MB of memory</rasd:ElementName><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>2048</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:ElementName>ideController0</rasd:ElementName><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>PIIX4</rasd:ResourceSubType><rasd:ResourceType>5</rasd:ResourceType></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:ElementName>sataController0</rasd:ElementName><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceSubType>AHCI</rasd:ResourceSubType><rasd:ResourceType>20</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:ElementName>disk2</rasd:ElementName><rasd:HostResource>/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>9</rasd:InstanceID><rasd:Parent>5</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>disk1</rasd:ElementName><rasd:HostResource>/disk/vmdisk2</rasd:HostResource><rasd:InstanceID>8</rasd:InstanceID><rasd:Parent>5</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>cdrom1</rasd:ElementName><rasd:InstanceID>10</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>15</rasd:ResourceType></Item>
    </VirtualHardwareSection>
    <vbox:Machine ovf:required="false" version="1.19-linux" uuid="{55d7cc1e-0000-4000-8000-000000000003}" name="box">
      <ovf:Info>Complete VirtualBox machine configuration in VirtualBox format</ovf:Info>
      <Hardware><CPU count="2"/><Firmware type="EFI"/></Hardware>
    </vbox:Machine>
  </VirtualSystem>
</Envelope>
`

// vmware is a descriptor as ovftool writes it, with deployments of vSphere.
const vmware = `<?xml version="1.0" encoding="UTF-8"?>
<!--Generated by VMware ovftool 4.6.0, UTC time: 2024-01-01T00:00:00Z-->
<Envelope vmw:buildId="build-1" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:cim="http://schemas.dmtf.org/wbem/wscim/1/common" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="` + nsRASD + `" xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="` + nsVSSD + `" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <References>
    <File ovf:href="my%20vm-disk1.vmdk" ovf:id="file1" ovf:size="SIZE"/>
    <File ovf:href="my vm-file1.nvram" ovf:id="file2" ovf:size="4"/>
  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
    <Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized" ovf:populatedSize="1"/>
  </DiskSection>
  <DeploymentOptionSection>
    <Info>Deployments</Info>
    <Configuration ovf:id="tiny"><Label>Tiny</Label><Description>d</Description></Configuration>
    <Configuration ovf:default="true" ovf:id="small"><Label>Small</Label><Description>d</Description></Configuration>
  </DeploymentOptionSection>
  <VirtualSystem ovf:id="my vm">
    <Info>A virtual machine</Info>
    <Name>My VM</Name>
    <OperatingSystemSection ovf:id="80" ovf:version="9" vmw:osType="rhel9_64Guest">
      <Info>The kind of installed guest operating system</Info>
      <Description>Red Hat Enterprise Linux 9 (64-bit)</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection ovf:transport="com.vmware.guestInfo">
      <Info>Virtual hardware requirements</Info>
      <System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID><vssd:VirtualSystemIdentifier>my vm</vssd:VirtualSystemIdentifier><vssd:VirtualSystemType>vmx-19</vssd:VirtualSystemType></System>
      <Item ovf:configuration="tiny"><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
      <Item ovf:configuration="medium small"><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
      <Item ovf:bound="min"><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>1</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>byte * 2^30</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>8</rasd:VirtualQuantity></Item>
      <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType><rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:ElementName>disk0</rasd:ElementName><rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>7</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <vmw:Config ovf:required="false" vmw:key="cpuHotAddEnabled" vmw:value="true"/>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:ExtraConfig ovf:required="false" vmw:key="nvram" vmw:value="ovf:/file/file2"/>
    </VirtualHardwareSection>
    <AnnotationSection ovf:required="false"><Info>A human-readable annotation</Info><Annotation>first&#13;
second</Annotation></AnnotationSection>
  </VirtualSystem>
</Envelope>
`

func manifest(format string, members ...member) []byte {
	var b strings.Builder
	for _, m := range members {
		switch {
		case strings.HasPrefix(format, "SHA1"):
			fmt.Fprintf(&b, format, m.name, sha1.Sum(m.b))
		case strings.HasPrefix(format, "SHA512"):
			fmt.Fprintf(&b, format, m.name, sha512.Sum512(m.b))
		default:
			fmt.Fprintf(&b, format, m.name, sha256.Sum256(m.b))
		}
	}
	return []byte(b.String())
}

// TestOtherWriters: what VirtualBox and VMware write, in any order of members
// and any dialect.
func TestOtherWriters(t *testing.T) {
	d1, d2 := vmdkOf(t, 1), vmdkOf(t, 2)
	vb := []member{{"box.ovf", []byte(virtualBox)}, {"box-disk001.vmdk", d1}, {"box-disk002.vmdk", d2}}
	vm := []member{{"my vm.ovf", []byte(strings.Replace(vmware, "SIZE", fmt.Sprint(len(d1)), 1))}, {"my vm-disk1.vmdk", d1}, {"my vm-file1.nvram", []byte("nvr\n")}}
	box := codec.Machine{
		Name: "box", CPUs: 2, MemoryMiB: 2048, Firmware: "uefi", OS: "Ubuntu_64", Arch: "x86_64", Created: time.Unix(1600000000, 0).UTC(),
		Extra: map[string]string{"ova.os_id": "94"},
	}
	my := codec.Machine{
		Name: "My VM", CPUs: 4, MemoryMiB: 8192, Firmware: "uefi", OS: "Red Hat Enterprise Linux 9 (64-bit)", OSVersion: "9", Arch: "x86_64",
		Created: time.Unix(1600000000, 0).UTC(), Description: "first\nsecond", Extra: map[string]string{"ova.os_id": "80", "ova.os_type": "rhel9_64Guest"},
	}
	for what, c := range map[string]struct {
		format  tar.Format
		members []member
		want    codec.Machine
		names   string
	}{
		"VirtualBox":                {tar.FormatUSTAR, append(vb[:3:3], member{"box.mf", manifest("SHA1 (%s) = %x\n", vb...)}), box, "box-disk002.vmdk box-disk001.vmdk"},
		"VirtualBox, manifest last": {tar.FormatGNU, append(vb[:3:3], member{"box.mf", manifest("SHA256 (%s) = %X\r\n", vb...)}), box, "box-disk002.vmdk box-disk001.vmdk"},
		"VirtualBox, no manifest":   {tar.FormatPAX, []member{vb[2], vb[0], vb[1]}, box, "box-disk002.vmdk box-disk001.vmdk"},
		"ovftool":                   {tar.FormatUSTAR, append([]member{vm[0], {"my vm.mf", manifest("SHA256(%s)= %x\n", vm...)}, {"my vm.cert", []byte("c")}}, vm[1:]...), my, "my vm-disk1.vmdk"},
		"ovftool, SHA-512":          {tar.FormatPAX, append([]member{{"my vm.mf", manifest("SHA512(%s)= %x\n", vm...)}}, vm...), my, "my vm-disk1.vmdk"},
	} {
		src := codectest.Bytes(tarOf(t, c.format, c.members...))
		m, parts, err := Package.Open(context.Background(), src)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if !reflect.DeepEqual(m, c.want) {
			t.Errorf("%s:\n%+v, want\n%+v", what, m, c.want)
		}
		var names []string
		for i, p := range parts {
			names = append(names, p.Name)
			if p.Number != i || p.Format != "vmdk" || p.Size == 0 {
				t.Errorf("%s: part %+v", what, p)
			}
		}
		if got := strings.Join(names, " "); got != c.names {
			t.Errorf("%s: disks %q, want %q", what, got, c.names)
		}
		if err := Package.(codec.Digested).Verify(context.Background(), src); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// plainOVF is a small descriptor; tests change it.
const plainOVF = `<Envelope xmlns="` + nsOVF + `" xmlns:ovf="` + nsOVF + `" xmlns:rasd="` + nsRASD + `"><References><File ovf:id="f" ovf:href="d.vmdk"/></References>` +
	`<DiskSection><Info/><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="512"/></DiskSection>` +
	`<VirtualSystem ovf:id="v"><Info/><VirtualHardwareSection><Info/>` +
	`<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>` +
	`<Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>64</rasd:VirtualQuantity></Item>` +
	`<Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/d</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>2</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>` +
	`</VirtualHardwareSection></VirtualSystem></Envelope>`

// TestRefused: descriptors and archives that say too much, or too little.
func TestRefused(t *testing.T) {
	d := member{"d.vmdk", vmdkOf(t, 1)}
	ovf := func(pairs ...string) []byte {
		text := strings.NewReplacer(pairs...).Replace(plainOVF)
		if len(pairs) > 0 && text == plainOVF {
			t.Fatalf("%q changes nothing", pairs)
		}
		return tarOf(t, tar.FormatUSTAR, member{"v.ovf", []byte(text)}, d)
	}
	whole := func(text string) []byte { return tarOf(t, tar.FormatUSTAR, member{"v.ovf", []byte(text)}, d) }
	mf := func(text string) []byte {
		return tarOf(t, tar.FormatUSTAR, member{"v.ovf", []byte(plainOVF)}, d, member{"v.mf", []byte(text)})
	}
	if _, _, err := Package.Open(context.Background(), codectest.Bytes(ovf())); err != nil {
		t.Fatal(err)
	}
	const item = `<Item><rasd:AddressOnParent>0`
	twoDisks := []string{"</References>", `<File ovf:id="g" ovf:href="e.vmdk"/></References>`, "</DiskSection>", `<Disk ovf:diskId="e" ovf:fileRef="g"/></DiskSection>`}
	good := ovf()
	for what, c := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"no tar":              {make([]byte, 4000), codec.ErrFormat, "no tar"},
		"nothing":             {nil, codec.ErrFormat, "no tar"},
		"no descriptor":       {tarOf(t, tar.FormatUSTAR, d), codec.ErrFormat, "without an .ovf"},
		"two descriptors":     {tarOf(t, tar.FormatUSTAR, d, member{"a.ovf", nil}, member{"b.OVF", nil}), codec.ErrUnsupported, "two members"},
		"two manifests":       {tarOf(t, tar.FormatUSTAR, d, member{"a.mf", nil}, member{"b.mf", nil}), codec.ErrUnsupported, "two members"},
		"large descriptor":    {whole(plainOVF + strings.Repeat(" ", mib)), codec.ErrUnsupported, "longest"},
		"truncated":           {good[:len(good)-2000], codec.ErrCorrupt, "past the end of the file"},
		"extra member":        {tarOf(t, tar.FormatUSTAR, member{"v.ovf", []byte(plainOVF)}, d, member{"x.vmdk", d.b}), codec.ErrCorrupt, `"x.vmdk" is not named`},
		"missing member":      {tarOf(t, tar.FormatUSTAR, member{"v.ovf", []byte(plainOVF)}), codec.ErrCorrupt, `"d.vmdk", which is no member`},
		"path":                {ovf(`href="d.vmdk"`, `href="../d.vmdk"`), codec.ErrCorrupt, "no member"},
		"url":                 {ovf(`href="d.vmdk"`, `href="http://x/d.vmdk"`), codec.ErrCorrupt, "no member"},
		"itself":              {ovf(`href="d.vmdk"`, `href="v.ovf"`), codec.ErrCorrupt, "twice, or as a file"},
		"wrong size":          {ovf(`href="d.vmdk"`, `href="d.vmdk" ovf:size="7"`), codec.ErrCorrupt, "has 7 bytes, the member has"},
		"no size":             {ovf(`href="d.vmdk"`, `href="d.vmdk" ovf:size="-7"`), codec.ErrCorrupt, "size of file"},
		"gzip":                {ovf(`href="d.vmdk"`, `href="d.vmdk" ovf:compression="gzip"`), codec.ErrUnsupported, "compressed"},
		"chunks":              {ovf(`href="d.vmdk"`, `href="d.vmdk" ovf:chunkSize="7"`), codec.ErrUnsupported, "chunks"},
		"parent":              {ovf(`fileRef="f"`, `fileRef="f" ovf:parentRef="x"`), codec.ErrUnsupported, "delta"},
		"empty disk":          {ovf(` ovf:fileRef="f"`, ``), codec.ErrUnsupported, "made empty"},
		"unknown file":        {ovf(`fileRef="f"`, `fileRef="g"`), codec.ErrCorrupt, "refers to the file"},
		"no href":             {ovf(`ovf:href="d.vmdk"`, ``), codec.ErrCorrupt, "one is missing"},
		"file id twice":       {ovf("</References>", `<File ovf:id="f" ovf:href="x"/></References>`), codec.ErrCorrupt, "two files"},
		"disk id twice":       {ovf("</DiskSection>", `<Disk ovf:diskId="d" ovf:fileRef="g"/></DiskSection>`), codec.ErrCorrupt, "another's"},
		"file of two disks":   {ovf("</DiskSection>", `<Disk ovf:diskId="e" ovf:fileRef="f"/></DiskSection>`), codec.ErrCorrupt, "another's"},
		"no disks":            {ovf(`<Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="512"/>`, ""), codec.ErrUnsupported, "0 disks"},
		"one address":         {ovf(append(twoDisks, item, `<Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>/disk/e</rasd:HostResource><rasd:Parent>2</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>`+item)...), codec.ErrCorrupt, "at one address"},
		"item twice":          {ovf(item, `<Item><rasd:HostResource>/disk/d</rasd:HostResource><rasd:ResourceType>17</rasd:ResourceType></Item>`+item), codec.ErrCorrupt, "two items"},
		"item of no disk":     {ovf("/disk/d", "/disk/x"), codec.ErrCorrupt, "does not have"},
		"item of a file":      {ovf("/disk/d", "/file/f"), codec.ErrUnsupported, "is the file"},
		"two machines":        {ovf("</VirtualSystem>", `</VirtualSystem><VirtualSystem ovf:id="w"/>`), codec.ErrUnsupported, "2 machines"},
		"collection":          {ovf("</VirtualSystem>", `</VirtualSystem><VirtualSystemCollection><VirtualSystem ovf:id="w"/></VirtualSystemCollection>`), codec.ErrUnsupported, "2 machines"},
		"nested":              {ovf("</VirtualSystem>", `</VirtualSystem><VirtualSystemCollection><VirtualSystemCollection/></VirtualSystemCollection>`), codec.ErrUnsupported, "within one another"},
		"processors":          {ovf("Quantity>2<", "Quantity>99999<"), codec.ErrUnsupported, "processors"},
		"no processors":       {ovf("Quantity>2<", "Quantity>-1<"), codec.ErrUnsupported, "processors"},
		"memory":              {ovf("Quantity>64<", "Quantity>99999999999999999999<"), codec.ErrCorrupt, "no number"},
		"much memory":         {ovf("Quantity>64<", "Quantity>999999999<"), codec.ErrUnsupported, "MiB"},
		"unit":                {ovf("byte * 2^20", "byte * 2^63"), codec.ErrUnsupported, "unit"},
		"odd unit":            {ovf("byte * 2^20", "furlongs"), codec.ErrUnsupported, "unit"},
		"zero unit":           {ovf("byte * 2^20", "byte * 0^20"), codec.ErrUnsupported, "unit"},
		"root":                {ovf("<Envelope", "<Envelop", "/Envelope", "/Envelop"), codec.ErrCorrupt, "want \"Envelope\""},
		"namespace":           {ovf(`xmlns="`+nsOVF, `xmlns="`+nsOVF+"9"), codec.ErrUnsupported, "namespace"},
		"no xml":              {whole("no xml"), codec.ErrCorrupt, "xml"},
		"empty":               {whole(""), codec.ErrCorrupt, "without an element"},
		"two roots":           {whole(plainOVF + "<a/>"), codec.ErrCorrupt, "second element"},
		"text behind":         {whole(plainOVF + "a"), codec.ErrCorrupt, "text outside"},
		"cut":                 {whole(plainOVF[:300]), codec.ErrCorrupt, "xml"},
		"document type":       {whole(`<!DOCTYPE Envelope SYSTEM "file:///etc/passwd">` + plainOVF), codec.ErrUnsupported, "document type"},
		"billion laughs":      {whole(`<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>` + strings.Replace(plainOVF, `<VirtualSystem ovf:id="v"><Info/>`, `<VirtualSystem ovf:id="v"><Info/><Name>&b;</Name>`, 1)), codec.ErrUnsupported, "document type"},
		"entity":              {ovf(`ovf:id="v"><Info/>`, `ovf:id="v"><Info/><Name>&b;</Name>`), codec.ErrCorrupt, "entity"},
		"deep":                {whole(strings.Repeat("<a>", 10000) + strings.Repeat("</a>", 10000)), codec.ErrUnsupported, "deeper"},
		"wide":                {whole("<a>" + strings.Repeat("<a/>", 100000) + "</a>"), codec.ErrUnsupported, "more than"},
		"many attributes":     {whole("<a " + manyAttrs(3000) + "/>"), codec.ErrUnsupported, "attributes"},
		"attribute twice":     {ovf(`ovf:diskId="d"`, `ovf:diskId="d" ovf:diskId="e"`), codec.ErrCorrupt, "two attributes"},
		"encoding":            {whole(`<?xml version="1.0" encoding="UTF-16"?>` + plainOVF), codec.ErrCorrupt, "encoding"},
		"not UTF-8":           {ovf(`ovf:id="v"`, "ovf:id=\"\xff\""), codec.ErrCorrupt, "UTF-8"},
		"control":             {ovf(`ovf:id="v"`, `ovf:id="a&#x7f;"`), codec.ErrCorrupt, "control character"},
		"long name":           {ovf(`ovf:id="v"`, `ovf:id="`+strings.Repeat("a", 2000)+`"`), codec.ErrUnsupported, "longest"},
		"raw disk":            {tarOf(t, tar.FormatUSTAR, member{"v.ovf", []byte(plainOVF)}, member{"d.vmdk", make([]byte, 2048)}), codec.ErrUnsupported, "no known signature"},
		"polyglot":            {tarOf(t, tar.FormatUSTAR, member{"v.ovf", []byte(plainOVF)}, member{"d.vmdk", append(bytes.Clone(d.b), append([]byte("conectix"), make([]byte, 504)...)...)}), codec.ErrUnsupported, "and"},
		"manifest line":       {mf("SHA256(v.ovf) 00\n"), codec.ErrCorrupt, "no digest"},
		"manifest digest":     {mf("MD5(v.ovf)= 00\n"), codec.ErrUnsupported, "unknown digest"},
		"manifest length":     {mf("SHA256(v.ovf)= 00\n"), codec.ErrCorrupt, "digits"},
		"manifest of nothing": {mf("SHA1(x)= " + strings.Repeat("0", 40)), codec.ErrCorrupt, "no member"},
		"manifest twice":      {mf(strings.Repeat("SHA1(v.ovf)= "+strings.Repeat("0", 40)+"\n", 2)), codec.ErrCorrupt, "second digest"},
	} {
		_, _, err := Package.Open(context.Background(), codectest.Bytes(c.b))
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%s: %v, want %v and %q", what, err, c.want, c.text)
		}
	}
}

func manyAttrs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `a%d="" `, i)
	}
	return b.String()
}

// TestVerify: a wrong digest, a failing store, a cancelled context.
func TestVerify(t *testing.T) {
	v := Package.(codec.Digested)
	members := []member{{"v.ovf", []byte(plainOVF)}, {"d.vmdk", vmdkOf(t, 1)}}
	b := tarOf(t, tar.FormatUSTAR, append(members, member{"v.mf", manifest("SHA256(%s)= %x\n", members...)})...)
	if err := v.Verify(context.Background(), codectest.Bytes(b)); err != nil {
		t.Error(err)
	}
	_, parts := open(t, codectest.Bytes(b))
	bad := codectest.Flip(codectest.Bytes(b), 8*(parts[0].Off+parts[0].Len-1))
	if err := v.Verify(context.Background(), bad); !errors.Is(err, codec.ErrCorrupt) || !strings.Contains(err.Error(), `SHA256 of "d.vmdk"`) {
		t.Errorf("a flipped bit: %v", err)
	}
	if err := v.Verify(context.Background(), codectest.Bytes(tarOf(t, tar.FormatUSTAR, members...))); err != nil {
		t.Errorf("no manifest: %v", err)
	}
	src := codectest.Bounded(codectest.Bytes(b), 1<<40, 1<<40)
	if err := v.Verify(context.Background(), src); err != nil {
		t.Error(err)
	}
	if _, n := src.Used(); n > int64(len(b))+4096 {
		t.Errorf("%d bytes read of %d", n, len(b))
	}
	for _, call := range []func(ctx context.Context, src codec.Source) error{v.Verify, func(ctx context.Context, src codec.Source) error {
		_, _, err := Package.Open(ctx, src)
		return err
	}} {
		for n := range int64(40) {
			err := call(context.Background(), codectest.Faulty(codectest.Bytes(b), codectest.ErrBoom, n))
			if err == nil {
				break
			}
			if !errors.Is(err, codectest.ErrBoom) {
				t.Errorf("a store that fails after %d reads: %v", n, err)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := call(ctx, codectest.Bytes(b)); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

// TestUnits: names of units, old and new.
func TestUnits(t *testing.T) {
	for s, want := range map[string]int64{
		"byte": 1, "": 1, "byte * 2^20": 1 << 20, "byte*2^30": 1 << 30, "byte * 10^6": 1e6, "MegaBytes": 1 << 20, "GigaBytes": 1 << 30, "KB": 1024, "byte * 1024": 1024,
		"byte * 2^62": 1 << 62, "byte * 2^63": 0, "byte * ": 0, "byte * 2^x": 0, "hertz": 0, "byte * 10^40": 0,
	} {
		got, err := unit(s)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
}
