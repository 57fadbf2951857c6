/* SPDX-License-Identifier: BSD-2-Clause */
#include <config.h>

#include "vm.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <uuid/uuid.h>

#define VM_MACHINE "pc-q35-7.2"
#define VM_CPU "qemu64"

extern char **environ;

static int no_memory(struct img_err *err)
{
	return img_err_set(err, IMG_IO, "out of memory");
}

int vm_read_all(int fd, size_t max, char **buf, size_t *len, const char *what, struct img_err *err)
{
	size_t size = 0, room = 0;
	char *p = NULL;

	for (;;) {
		ssize_t n;

		if (size + 1 >= room) {
			char *q;

			if (size > max) {
				free(p);
				return img_err_set(err, IMG_DATA, "%s: longer than %zu bytes", what,
						   max);
			}
			room = room ? room * 2 : 65536;
			q = realloc(p, room);
			if (!q) {
				free(p);
				return no_memory(err);
			}
			p = q;
		}
		n = read(fd, p + size, room - size - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			free(p);
			return img_err_errno(err, errno, "%s: cannot read", what);
		}
		if (n == 0)
			break;
		size += (size_t)n;
	}
	if (size > max) {
		free(p);
		return img_err_set(err, IMG_DATA, "%s: longer than %zu bytes", what, max);
	}
	p[size] = '\0';
	*buf = p;
	*len = size;
	return 0;
}

/* ---- the tree ---- */

static bool ours(const xmlNode *n)
{
	return !n->ns || !n->ns->href || !strcmp((const char *)n->ns->href, "") ||
	       !strcmp((const char *)n->ns->href, VM_NS);
}

xmlNode *vm_child(const xmlNode *parent, const char *name)
{
	for (xmlNode *n = parent ? parent->children : NULL; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && ours(n) && !strcmp((const char *)n->name, name))
			return n;
	return NULL;
}

static xmlNode *next_of(const xmlNode *node)
{
	for (xmlNode *n = node->next; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && ours(n) && xmlStrEqual(n->name, node->name))
			return n;
	return NULL;
}

static char *from_xml(xmlChar *x)
{
	char *s = x ? strdup((const char *)x) : NULL;

	xmlFree(x);
	return s;
}

char *vm_text(const xmlNode *node)
{
	return node ? from_xml(xmlNodeGetContent(node)) : NULL;
}

char *vm_attr(const xmlNode *node, const char *name)
{
	return node ? from_xml(xmlGetNoNsProp(node, (const xmlChar *)name)) : NULL;
}

/* The child, made at the end of PARENT when it is not there. */
static xmlNode *need_child(xmlNode *parent, const char *name, struct img_err *err)
{
	xmlNode *n = vm_child(parent, name);

	if (!n)
		n = xmlNewChild(parent, NULL, (const xmlChar *)name, NULL);
	if (!n)
		no_memory(err);
	return n;
}

bool vm_xml_clean(const char *text)
{
	if (!xmlCheckUTF8((const unsigned char *)text))
		return false;
	for (; *text; text++)
		if ((unsigned char)*text < ' ' && !strchr("\t\n\r", *text))
			return false;
	return true;
}

static int need_clean(const char *text, struct img_err *err)
{
	if (vm_xml_clean(text))
		return 0;
	return img_err_set(err, IMG_DATA,
			   "\"%s\": not UTF-8, or with a control character: XML cannot hold it",
			   text);
}

int vm_set_text(xmlNode *parent, const char *child, const char *text, struct img_err *err)
{
	xmlNode *n, *t;

	if (need_clean(text, err) < 0)
		return -1;
	n = need_child(parent, child, err);
	if (!n)
		return -1;
	/* xmlNodeSetContent() would take entity references in the text; a text node does not. */
	xmlNodeSetContent(n, NULL);
	t = xmlNewDocText(n->doc, (const xmlChar *)text);
	if (!t || !xmlAddChild(n, t))
		return no_memory(err);
	return 0;
}

int vm_set_attr(xmlNode *node, const char *name, const char *value, struct img_err *err)
{
	if (need_clean(value, err) < 0)
		return -1;
	if (!xmlSetProp(node, (const xmlChar *)name, (const xmlChar *)value))
		return no_memory(err);
	return 0;
}

/* ---- parsing ---- */

/* No document of ours has a DTD, and entities are where hostile ones hide. */
static void refuse_dtd(void *ctx, const xmlChar *name, const xmlChar *ext, const xmlChar *sys)
{
	xmlParserCtxt *ctxt = ctx;

	(void)name;
	(void)ext;
	(void)sys;
	*(bool *)ctxt->_private = true;
	xmlStopParser(ctxt);
}

static int parse_tree(struct vm_doc *vm, const char *buf, size_t len, const char *what,
		      struct img_err *err)
{
	xmlParserCtxt *ctxt = xmlNewParserCtxt();
	bool dtd = false;
	int ret = -1;

	if (!ctxt)
		return no_memory(err);
	ctxt->_private = &dtd;
	ctxt->sax->internalSubset = refuse_dtd;
	vm->doc = xmlCtxtReadMemory(ctxt, buf, (int)len, NULL, NULL,
				    XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING |
					    XML_PARSE_NOCDATA);
	if (dtd) {
		img_err_set(err, IMG_DATA, "%s: a document type (DTD) is not accepted", what);
	} else if (!vm->doc) {
		const xmlError *e = xmlCtxtGetLastError(ctxt);
		size_t n = e && e->message ? strcspn(e->message, "\n") : 0;

		img_err_set(err, IMG_DATA, "%s: not well-formed XML: line %d: %.*s", what,
			    e ? e->line : 0, (int)n, n ? e->message : "");
	} else {
		ret = 0;
	}
	if (ret < 0) {
		xmlFreeDoc(vm->doc);
		vm->doc = NULL;
	}
	xmlFreeParserCtxt(ctxt);
	return ret;
}

static int find_domain(struct vm_doc *vm, const char *what, struct img_err *err)
{
	xmlNode *root = xmlDocGetRootElement(vm->doc);
	char *version;

	if (root && ours(root) && !strcmp((const char *)root->name, "domain")) {
		vm->domain = root;
		return 0;
	}
	if (!root || !ours(root) || strcmp((const char *)root->name, "qsm-vm") != 0)
		return img_err_set(err, IMG_DATA,
				   "%s: neither a VM document (<qsm-vm>) nor a libvirt <domain>",
				   what);
	version = vm_attr(root, "version");
	if (!version || strcmp(version, "1") != 0) {
		img_err_set(err, IMG_DATA, "%s: VM document of version %s, only 1 is known", what,
			    version ? version : "(none)");
		free(version);
		return -1;
	}
	free(version);
	vm->wrapper = root;
	vm->domain = vm_child(root, "domain");
	if (!vm->domain)
		return img_err_set(err, IMG_DATA, "%s: the VM document holds no <domain>", what);
	return 0;
}

int vm_parse(struct vm_doc *vm, const char *buf, size_t len, const char *what, struct img_err *err)
{
	memset(vm, 0, sizeof *vm);
	if (len > VM_DOC_MAX)
		return img_err_set(err, IMG_DATA, "%s: longer than %u bytes", what, VM_DOC_MAX);
	if (parse_tree(vm, buf, len, what, err) < 0)
		return -1;
	if (find_domain(vm, what, err) < 0 || vm_decode(vm, err) < 0) {
		vm_free(vm);
		return -1;
	}
	return 0;
}

static void free_decoded(struct vm_doc *vm)
{
	for (size_t i = 0; i < vm->ndisks; i++) {
		free(vm->disks[i].target);
		free(vm->disks[i].bus);
		free(vm->disks[i].source);
		free(vm->disks[i].serial);
	}
	for (size_t i = 0; i < vm->nnics; i++) {
		free(vm->nics[i].mac);
		free(vm->nics[i].type);
		free(vm->nics[i].model);
		free(vm->nics[i].network);
	}
	free(vm->disks);
	free(vm->nics);
	free(vm->name);
	free(vm->uuid);
	vm->disks = NULL;
	vm->nics = NULL;
	vm->ndisks = vm->nnics = 0;
	vm->name = vm->uuid = NULL;
}

void vm_free(struct vm_doc *vm)
{
	free_decoded(vm);
	xmlFreeDoc(vm->doc);
	memset(vm, 0, sizeof *vm);
}

/* ---- decoding ---- */

bool vm_name_ok(const char *name)
{
	size_t len = strlen(name);

	/* It becomes the name of a folder; hidden ones are being made or removed. */
	return len > 0 && len <= 200 && name[0] != '.' && !strchr(name, '/') && vm_xml_clean(name);
}

bool vm_uuid_ok(const char *uuid)
{
	uuid_t u;

	return strlen(uuid) == 36 && uuid_parse(uuid, u) == 0;
}

static void lower(char *s)
{
	for (; *s; s++)
		*s = (char)tolower((unsigned char)*s);
}

static bool word_ok(const char *s, const char *more, size_t max)
{
	size_t len = strlen(s);

	if (len == 0 || len > max || *s == '-' || *s == '.')
		return false;
	for (; *s; s++)
		if (!isascii((unsigned char)*s) ||
		    (!isalnum((unsigned char)*s) && !strchr(more, *s)))
			return false;
	return true;
}

static bool mac_ok(const char *s)
{
	if (strlen(s) != 17)
		return false;
	for (int i = 0; i < 17; i++)
		if (i % 3 == 2 ? s[i] != ':' : !isxdigit((unsigned char)s[i]))
			return false;
	return true;
}

static int number(const char *s, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(s, &end, 10);
	return isdigit((unsigned char)*s) && !errno && end[strspn(end, " \t\r\n")] == '\0' ? 0 : -1;
}

static int boot_order(const xmlNode *device, uint64_t *out, struct img_err *err)
{
	char *s = vm_attr(vm_child(device, "boot"), "order");

	*out = 0;
	if (s && (number(s, out) < 0 || *out == 0 || *out > 10000)) {
		img_err_set(err, IMG_DATA, "boot order \"%s\" is not a number from 1 to 10000", s);
		free(s);
		return -1;
	}
	free(s);
	return 0;
}

static char *attr_or(const xmlNode *node, const char *name, const char *otherwise)
{
	char *s = vm_attr(node, name);

	return s ? s : strdup(otherwise);
}

static int decode_disk(struct vm_disk *d, xmlNode *node, struct img_err *err)
{
	const xmlNode *target = vm_child(node, "target"), *source = vm_child(node, "source");

	d->node = node;
	d->target = vm_attr(target, "dev");
	d->bus = attr_or(target, "bus", "virtio");
	d->source = vm_attr(source, "file");
	if (!d->source)
		d->source = vm_attr(source, "dev");
	d->serial = vm_text(vm_child(node, "serial"));
	d->readonly = vm_child(node, "readonly") != NULL;
	if (!d->target || !word_ok(d->target, "-_", 32))
		return img_err_set(err, IMG_DATA,
				   "a disk's <target dev> is %s: 1 to 32 letters, digits, - and _ "
				   "are wanted",
				   d->target ? d->target : "missing");
	if (!d->bus)
		return no_memory(err);
	return boot_order(node, &d->boot, err);
}

static int decode_nic(struct vm_nic *n, xmlNode *node, struct img_err *err)
{
	const xmlNode *source = vm_child(node, "source");

	n->node = node;
	n->mac = vm_attr(vm_child(node, "mac"), "address");
	n->type = attr_or(node, "type", "user");
	n->model = attr_or(vm_child(node, "model"), "type", "virtio");
	n->network = vm_attr(source, "network");
	if (!n->network)
		n->network = vm_attr(source, "bridge");
	if (!n->type || !n->model)
		return no_memory(err);
	if (n->mac && !mac_ok(n->mac))
		return img_err_set(err, IMG_DATA, "\"%s\" is not a MAC address", n->mac);
	if (n->mac)
		lower(n->mac);
	if (!word_ok(n->model, "-_", 32))
		return img_err_set(err, IMG_DATA, "network card model \"%s\" is not a name",
				   n->model);
	return boot_order(node, &n->boot, err);
}

static bool is_disk(const xmlNode *n)
{
	char *device = vm_attr(n, "device");
	bool yes = !device || !strcmp(device, "disk");

	free(device);
	return yes;
}

static int decode_devices(struct vm_doc *vm, struct img_err *err)
{
	const xmlNode *devices = vm_child(vm->domain, "devices");

	vm->disks = calloc(VM_MAX_DEVICES, sizeof *vm->disks);
	vm->nics = calloc(VM_MAX_DEVICES, sizeof *vm->nics);
	if (!vm->disks || !vm->nics)
		return no_memory(err);
	for (xmlNode *n = vm_child(devices, "disk"); n; n = next_of(n)) {
		if (!is_disk(n))
			continue;
		if (vm->ndisks == VM_MAX_DEVICES)
			return img_err_set(err, IMG_DATA, "more than %d disks", VM_MAX_DEVICES);
		if (decode_disk(&vm->disks[vm->ndisks++], n, err) < 0)
			return -1;
		for (size_t i = 0; i + 1 < vm->ndisks; i++)
			if (!strcmp(vm->disks[i].target, vm->disks[vm->ndisks - 1].target))
				return img_err_set(err, IMG_DATA, "two disks have the target %s",
						   vm->disks[i].target);
	}
	for (xmlNode *n = vm_child(devices, "interface"); n; n = next_of(n)) {
		if (vm->nnics == VM_MAX_DEVICES)
			return img_err_set(err, IMG_DATA, "more than %d network cards",
					   VM_MAX_DEVICES);
		if (decode_nic(&vm->nics[vm->nnics++], n, err) < 0)
			return -1;
	}
	return 0;
}

int vm_decode(struct vm_doc *vm, struct img_err *err)
{
	free_decoded(vm);
	vm->name = vm_text(vm_child(vm->domain, "name"));
	vm->uuid = vm_text(vm_child(vm->domain, "uuid"));
	if (vm->name && !vm_name_ok(vm->name))
		return img_err_set(err, IMG_DATA,
				   "\"%s\" cannot be a VM's name: 1 to 200 bytes, no slash, no dot "
				   "in front",
				   vm->name);
	if (vm->uuid && !vm_uuid_ok(vm->uuid))
		return img_err_set(err, IMG_DATA, "\"%s\" is not a UUID", vm->uuid);
	if (vm->uuid)
		lower(vm->uuid);
	return decode_devices(vm, err);
}

/* ---- changes ---- */

int vm_set_source(struct vm_disk *disk, const char *file, struct img_err *err)
{
	xmlNode *source = need_child(disk->node, "source", err);

	if (!source)
		return -1;
	xmlUnsetProp(source, (const xmlChar *)"dev");
	if (vm_set_attr(disk->node, "type", "file", err) < 0 ||
	    vm_set_attr(source, "file", file, err) < 0)
		return -1;
	free(disk->source);
	disk->source = strdup(file);
	return disk->source ? 0 : no_memory(err);
}

int vm_set_network(struct vm_nic *nic, const char *network, struct img_err *err)
{
	bool bridge = !strcmp(nic->type, "bridge");
	xmlNode *source = need_child(nic->node, "source", err);

	if (!source)
		return -1;
	if (!bridge && vm_set_attr(nic->node, "type", "network", err) < 0)
		return -1;
	if (vm_set_attr(source, bridge ? "bridge" : "network", network, err) < 0)
		return -1;
	free(nic->network);
	nic->network = strdup(network);
	if (!bridge) {
		free(nic->type);
		nic->type = strdup("network");
	}
	return nic->network && nic->type ? 0 : no_memory(err);
}

static int complete_machine(struct vm_doc *vm, const char *machine, struct img_err *err)
{
	xmlNode *os = need_child(vm->domain, "os", err), *type, *cpu;
	char *have;

	if (!os)
		return -1;
	type = vm_child(os, "type");
	if (!type) {
		if (vm_set_text(os, "type", "hvm", err) < 0)
			return -1;
		type = vm_child(os, "type");
	}
	have = vm_attr(type, "machine");
	if ((machine || !have) &&
	    vm_set_attr(type, "machine", machine ? machine : VM_MACHINE, err) < 0) {
		free(have);
		return -1;
	}
	free(have);
	if (vm_child(vm->domain, "cpu"))
		return 0;
	cpu = need_child(vm->domain, "cpu", err);
	if (!cpu || vm_set_attr(cpu, "mode", "custom", err) < 0)
		return -1;
	return vm_set_text(cpu, "model", VM_CPU, err);
}

int vm_complete(struct vm_doc *vm, const char *machine, struct img_err *err)
{
	uuid_t u;

	uuid_generate(u);
	if (!vm->uuid) {
		char s[37];

		uuid_unparse_lower(u, s);
		if (vm_set_text(vm->domain, "uuid", s, err) < 0)
			return -1;
	} else {
		uuid_parse(vm->uuid, u);
	}
	for (size_t i = 0; i < vm->nnics; i++) {
		xmlNode *mac;
		char s[18];

		if (vm->nics[i].mac)
			continue;
		/*
		 * In QEMU's range; the rest from the UUID, so that a second reading gives the
		 * same.
		 */
		snprintf(s, sizeof s, "52:54:00:%02x:%02x:%02x", u[13], u[14],
			 (unsigned)(u[15] + i) & 0xff);
		mac = need_child(vm->nics[i].node, "mac", err);
		if (!mac || vm_set_attr(mac, "address", s, err) < 0)
			return -1;
	}
	if (complete_machine(vm, machine, err) < 0)
		return -1;
	return vm_decode(vm, err);
}

/* ---- the domain as JSON ---- */

static int memory_bytes(const xmlNode *node, uint64_t *out, struct img_err *err)
{
	static const struct {
		const char *unit;
		uint64_t factor;
	} units[] = { { "b", 1 },	   { "bytes", 1 },     { "KB", 1000 },	     { "k", 1024 },
		      { "KiB", 1024 },	   { "MB", 1000000 },  { "M", 1 << 20 },     { "MiB", 1 << 20 },
		      { "GB", 1000000000 }, { "G", 1 << 30 },  { "GiB", 1 << 30 },
		      { "T", 1ull << 40 }, { "TiB", 1ull << 40 } };
	char *text = vm_text(node), *unit = vm_attr(node, "unit");
	uint64_t n = 0, factor = unit ? 0 : 1024;
	int ret = 0;

	for (size_t i = 0; unit && i < sizeof units / sizeof *units; i++)
		if (!strcmp(unit, units[i].unit))
			factor = units[i].factor;
	if (!text || number(text + strspn(text, " \t\r\n"), &n) < 0 || n == 0 || factor == 0 ||
	    n > (UINT64_C(1) << 50) / factor)
		ret = img_err_set(err, IMG_DATA, "<memory%s%s>%s: not an amount of memory",
				  unit ? " unit=" : "", unit ? unit : "", text ? text : "");
	*out = n * factor;
	free(text);
	free(unit);
	return ret;
}

static int cpu_features(const xmlNode *cpu, char *buf, size_t size, struct img_err *err)
{
	for (xmlNode *f = vm_child(cpu, "feature"); f; f = next_of(f)) {
		char *policy = attr_or(f, "policy", "require"), *name = vm_attr(f, "name");
		bool on = policy && (!strcmp(policy, "require") || !strcmp(policy, "force"));
		size_t len = strlen(buf);
		int n = -1;

		if (policy && !strcmp(policy, "optional"))
			n = 0;
		else if (policy && name && word_ok(name, "-_.", 64))
			n = snprintf(buf + len, size - len, ",%s=%s", name, on ? "on" : "off");
		free(policy);
		free(name);
		if (n < 0 || (size_t)n >= size - len)
			return img_err_set(err, IMG_DATA, "the list of CPU features is not usable");
	}
	return 0;
}

/* The CPU as QEMU's -cpu takes it. */
static int cpu_model(const struct vm_doc *vm, char *buf, size_t size, struct img_err *err)
{
	const xmlNode *cpu = vm_child(vm->domain, "cpu");
	char *mode = vm_attr(cpu, "mode"), *model = vm_text(vm_child(cpu, "model"));
	int ret = 0;

	if (mode && !strncmp(mode, "host-", 5)) {
		snprintf(buf, size, "host");
	} else {
		snprintf(buf, size, "%s", model ? model : VM_CPU);
		if (!word_ok(buf, "-_.", 64))
			ret = img_err_set(err, IMG_DATA, "CPU model \"%s\" is not a name", buf);
	}
	free(mode);
	free(model);
	return ret < 0 ? -1 : cpu_features(cpu, buf, size, err);
}

static void put(json_t *o, const char *key, const char *value)
{
	json_object_set_new(o, key, value ? json_string(value) : json_null());
}

static json_t *disks_json(const struct vm_doc *vm)
{
	json_t *a = json_array();

	for (size_t i = 0; i < vm->ndisks; i++) {
		const struct vm_disk *d = &vm->disks[i];
		json_t *o = json_object();

		put(o, "target", d->target);
		put(o, "bus", d->bus);
		put(o, "source", d->source);
		put(o, "serial", d->serial);
		json_object_set_new(o, "readonly", json_boolean(d->readonly));
		json_object_set_new(o, "boot", json_integer((json_int_t)d->boot));
		json_array_append_new(a, o);
	}
	return a;
}

static json_t *nics_json(const struct vm_doc *vm)
{
	json_t *a = json_array();

	for (size_t i = 0; i < vm->nnics; i++) {
		const struct vm_nic *n = &vm->nics[i];
		json_t *o = json_object();

		put(o, "mac", n->mac);
		put(o, "type", n->type);
		put(o, "model", n->model);
		put(o, "network", n->network);
		json_object_set_new(o, "boot", json_integer((json_int_t)n->boot));
		json_array_append_new(a, o);
	}
	return a;
}

/* Devices that carry state or identity of the host they are on. */
static json_t *unmovable_json(const struct vm_doc *vm)
{
	static const char *const kinds[] = { "hostdev", "redirdev", "tpm", "shmem", "filesystem",
					     "smartcard", "nvram", "vsock" };
	const xmlNode *devices = vm_child(vm->domain, "devices"), *os = vm_child(vm->domain, "os");
	json_t *a = json_array();

	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (vm_child(devices, kinds[i]))
			json_array_append_new(a, json_string(kinds[i]));
	if (vm_child(os, "loader") || vm_child(os, "nvram"))
		json_array_append_new(a, json_string("firmware"));
	for (xmlNode *n = vm_child(devices, "disk"); n; n = next_of(n))
		if (!is_disk(n) && vm_child(n, "source"))
			json_array_append_new(a, json_string("removable medium"));
	return a;
}

static json_t *boot_json(const struct vm_doc *vm)
{
	json_t *a = json_array();

	for (xmlNode *n = vm_child(vm_child(vm->domain, "os"), "boot"); n; n = next_of(n)) {
		char *dev = vm_attr(n, "dev");

		if (dev)
			json_array_append_new(a, json_string(dev));
		free(dev);
	}
	return a;
}

static int machine_json(const struct vm_doc *vm, json_t *o, struct img_err *err)
{
	const xmlNode *os = vm_child(vm->domain, "os"), *type = vm_child(os, "type");
	char *machine = attr_or(type, "machine", VM_MACHINE);
	char *arch = attr_or(type, "arch", "x86_64");
	char *accel = attr_or(vm->domain, "type", "qemu");
	int ret = 0;

	if (!machine || !arch || !accel)
		ret = no_memory(err);
	else if (!word_ok(machine, "-_.", 64))
		ret = img_err_set(err, IMG_DATA, "machine type \"%s\" is not a name", machine);
	else if (!word_ok(arch, "_", 16))
		ret = img_err_set(err, IMG_DATA, "architecture \"%s\" is not a name", arch);
	put(o, "machine", machine);
	put(o, "arch", arch);
	put(o, "type", accel);
	free(machine);
	free(arch);
	free(accel);
	return ret;
}

static void text_json(json_t *o, const char *key, const xmlNode *node)
{
	char *s = vm_text(node);

	put(o, key, s);
	free(s);
}

json_t *vm_json(const struct vm_doc *vm, struct img_err *err)
{
	const xmlNode *os = vm_child(vm->domain, "os");
	json_t *o = json_object();
	char cpu[2048] = "", *vcpu = vm_text(vm_child(vm->domain, "vcpu"));
	uint64_t memory, cpus = 1;

	json_object_set_new(o, "version", json_integer(1));
	put(o, "name", vm->name);
	put(o, "uuid", vm->uuid);
	if (memory_bytes(vm_child(vm->domain, "memory"), &memory, err) < 0 ||
	    machine_json(vm, o, err) < 0 || cpu_model(vm, cpu, sizeof cpu, err) < 0)
		goto bad;
	if (vcpu && (number(vcpu + strspn(vcpu, " \t\r\n"), &cpus) < 0 || cpus < 1 || cpus > 4096)) {
		img_err_set(err, IMG_DATA, "<vcpu>%s: not a number from 1 to 4096", vcpu);
		goto bad;
	}
	put(o, "cpu", cpu);
	json_object_set_new(o, "memory", json_integer((json_int_t)memory));
	json_object_set_new(o, "vcpus", json_integer((json_int_t)cpus));
	text_json(o, "kernel", vm_child(os, "kernel"));
	text_json(o, "initrd", vm_child(os, "initrd"));
	text_json(o, "cmdline", vm_child(os, "cmdline"));
	json_object_set_new(o, "boot", boot_json(vm));
	json_object_set_new(o, "disks", disks_json(vm));
	json_object_set_new(o, "nics", nics_json(vm));
	json_object_set_new(o, "unmovable", unmovable_json(vm));
	free(vcpu);
	return o;
bad:
	free(vcpu);
	json_decref(o);
	return NULL;
}

xmlChar *vm_domain_text(const struct vm_doc *vm, int *len, struct img_err *err)
{
	xmlDoc *doc = xmlNewDoc((const xmlChar *)"1.0");
	xmlNode *copy = doc ? xmlDocCopyNode(vm->domain, doc, 1) : NULL;
	xmlChar *text = NULL;

	if (copy) {
		xmlDocSetRootElement(doc, copy);
		/* xmlns="" says nothing once the wrapper is gone; no element refers to it. */
		if (!copy->ns && copy->nsDef && !copy->nsDef->prefix) {
			xmlNs *ns = copy->nsDef;

			copy->nsDef = ns->next;
			xmlFreeNs(ns);
		}
		xmlDocDumpFormatMemoryEnc(doc, &text, len, "UTF-8", 0);
	}
	xmlFreeDoc(doc);
	if (!text)
		no_memory(err);
	return text;
}

/* ---- the adapter ---- */

bool vm_hypervisor_ok(const char *hypervisor)
{
	return word_ok(hypervisor, "-_", 32);
}

/* DIR/hv-H of the first folder that has it: ours, ../libexec/qsm-tools, the folders of PATH. */
static int find_adapter(const char *hypervisor, char *buf, size_t size, struct img_err *err)
{
	static const char *const below[] = { "", "/../libexec/qsm-tools" };
	const char *path = getenv("PATH");
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	char *slash;

	self[n > 0 ? n : 0] = '\0';
	slash = strrchr(self, '/');
	for (size_t i = 0; slash && i < sizeof below / sizeof *below; i++) {
		snprintf(buf, size, "%.*s%s/hv-%s", (int)(slash - self), self, below[i], hypervisor);
		if (access(buf, X_OK) == 0)
			return 0;
	}
	while (path && *path) {
		size_t len = strcspn(path, ":");

		snprintf(buf, size, "%.*s%shv-%s", (int)len, path, len ? "/" : "./", hypervisor);
		if (access(buf, X_OK) == 0)
			return 0;
		path += len + (path[len] == ':');
	}
	return img_err_set(err, IMG_UNAVAIL,
			   "hv-%s: no such hypervisor adapter beside this program or in PATH",
			   hypervisor);
}

static int spawn(const char *file, const char **argv, int in, int out, pid_t *pid,
		 struct img_err *err)
{
	posix_spawn_file_actions_t fa;
	int rc = posix_spawn_file_actions_init(&fa);

	if (rc)
		return img_err_errno(err, rc, "%s: cannot start", file);
	if (in >= 0)
		rc = posix_spawn_file_actions_adddup2(&fa, in, 0);
	else
		rc = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", 0, 0);
	if (!rc && out >= 0)
		rc = posix_spawn_file_actions_adddup2(&fa, out, 1);
	for (int fd = 3; !rc && fd < 10; fd++)
		if (fd == in || fd == out)
			rc = posix_spawn_file_actions_addclose(&fa, fd);
	if (!rc)
		rc = posix_spawn(pid, file, &fa, NULL, (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	return rc ? img_err_errno(err, rc, "%s: cannot start", file) : 0;
}

static int wait_for(pid_t pid, const char *file, int *status, struct img_err *err)
{
	int ws;

	while (waitpid(pid, &ws, 0) < 0)
		if (errno != EINTR)
			return img_err_errno(err, errno, "%s: lost", file);
	if (!WIFEXITED(ws))
		return img_err_set(err, IMG_UNAVAIL, "%s: killed by signal %d", file,
				   WTERMSIG(ws));
	*status = WEXITSTATUS(ws);
	return 0;
}

/* A nameless file, so that whatever order the adapter reads and writes in, nobody waits. */
static FILE *stdin_file(const void *in, size_t len, struct img_err *err)
{
	FILE *f = tmpfile();

	if (f && fwrite(in, 1, len, f) == len && fflush(f) == 0 && fseek(f, 0, SEEK_SET) == 0)
		return f;
	img_err_errno(err, errno, "temporary file");
	if (f)
		fclose(f);
	return NULL;
}

int vm_adapter(const char *hypervisor, const char **argv, const void *in, size_t inlen, char **out,
	       size_t *outlen, int *status, struct img_err *err)
{
	char file[4400];
	int fds[2] = { -1, -1 }, ret = -1;
	FILE *f = NULL;
	pid_t pid;

	if (find_adapter(hypervisor, file, sizeof file, err) < 0)
		return -1;
	argv[0] = file;
	if (in && !(f = stdin_file(in, inlen, err)))
		return -1;
	if (out && pipe(fds) < 0) {
		img_err_errno(err, errno, "pipe");
		goto out;
	}
	if (spawn(file, argv, f ? fileno(f) : -1, fds[1], &pid, err) < 0)
		goto out;
	if (out) {
		int st;

		close(fds[1]);
		fds[1] = -1;
		*out = NULL;
		if (vm_read_all(fds[0], VM_OUTPUT_MAX, out, outlen, file, err) < 0) {
			close(fds[0]); /* it gets SIGPIPE and ends */
			fds[0] = -1;
			wait_for(pid, file, &st, err);
			goto out;
		}
	}
	ret = wait_for(pid, file, status, err);
	if (ret < 0 && out) {
		free(*out);
		*out = NULL;
	}
out:
	if (fds[0] >= 0)
		close(fds[0]);
	if (fds[1] >= 0)
		close(fds[1]);
	if (f)
		fclose(f);
	return ret;
}
