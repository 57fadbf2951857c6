/* SPDX-License-Identifier: BSD-2-Clause */
/* A VM document on stdin becomes a VM of this host's hypervisor, or nothing does. */
#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "vm.h"

static const char help[] =
	"Usage: vm-import [OPTION]... < DOCUMENT\n"
	"Defines the virtual machine that a vm-export document (or a libvirt domain) describes.\n"
	"\n"
	"      --disk=TARGET=FILE     FILE here is the disk TARGET; every disk needs one\n"
	"      --network=MAC=NEW      connect that network card to the network NEW\n"
	"      --network=OLD=NEW      connect to NEW what was connected to OLD\n"
	"      --kernel=FILE          boot this kernel in place of the document's\n"
	"      --initrd=FILE          and this initial RAM disk\n"
	"      --name=NAME            another name\n"
	"      --keep-uuid            the VM keeps its UUID (the default)\n"
	"      --new-uuid             the VM gets a new one: it is a copy\n"
	"      --machine=TYPE         another machine type\n"
	"      --hypervisor=H         the adapter is hv-H (default: qemu)\n"
	"      --pending=TOKEN        define it unstartable, until hv-H claim\n"
	"  -n, --check, --dry-run     only check, define nothing\n"
	"      --print[=xml|json]     write the mapped domain to stdout, define nothing\n"
	"      --json                 what was found missing, or defined, as JSON\n"
	"      --parent-dir=DIR       parents of a disk may lie below DIR\n"
	"      --parent-anywhere      parents of a disk may lie anywhere\n"
	"      --progress=json        accepted, without effect\n"
	"  -q, --quiet                no messages but errors\n"
	"  -h, --help                 this text\n"
	"  -V, --version              the version\n";

enum {
	OPT_DISK = CLI_TOOL,
	OPT_NETWORK,
	OPT_KERNEL,
	OPT_INITRD,
	OPT_NAME,
	OPT_KEEP_UUID,
	OPT_NEW_UUID,
	OPT_MACHINE,
	OPT_HYPERVISOR,
	OPT_PENDING,
	OPT_PRINT,
};

#define MAX_MAPS 512

struct map {
	const char *arg; /* KEY=VALUE as given */
	bool used;
};

struct import {
	struct cli_common common;
	struct map disks[MAX_MAPS], networks[MAX_MAPS];
	size_t ndisks, nnetworks;
	const char *name, *machine, *hypervisor, *pending, *kernel, *initrd;
	bool new_uuid, check, print, print_json, json;
	struct vm_doc vm;
	json_t *blockers;
};

static void blocker(struct import *im, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void blocker(struct import *im, const char *fmt, ...)
{
	char msg[4096];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof msg, fmt, ap);
	va_end(ap);
	if (json_array_append_new(im->blockers, json_string(msg)) < 0)
		json_array_append_new(im->blockers, json_string("a name here is not UTF-8"));
}

static const char *or_none(const char *s)
{
	return s && *s ? s : "none";
}

/* The value of the mapping for KEY, "KEY=VALUE"; both may hold a '='. */
static const char *mapped(struct map *maps, size_t n, const char *key)
{
	size_t len = key ? strlen(key) : 0;

	for (size_t i = 0; key && i < n; i++)
		if (!strncmp(maps[i].arg, key, len) && maps[i].arg[len] == '=') {
			maps[i].used = true;
			return maps[i].arg + len + 1;
		}
	return NULL;
}

static const char *mapped_mac(struct map *maps, size_t n, const char *mac)
{
	for (size_t i = 0; mac && i < n; i++)
		if (!strncasecmp(maps[i].arg, mac, 17) && maps[i].arg[17] == '=') {
			maps[i].used = true;
			return maps[i].arg + 18;
		}
	return NULL;
}

static int absolute(const char *file, char *buf, size_t size, struct img_err *err)
{
	char cwd[PATH_MAX];
	int n;

	if (*file == '/')
		n = snprintf(buf, size, "%s", file);
	else if (getcwd(cwd, sizeof cwd))
		n = snprintf(buf, size, "%s/%s", cwd, file);
	else
		return img_err_errno(err, errno, "current folder");
	if ((size_t)n >= size)
		return img_err_set(err, IMG_USAGE, "%s: name too long", file);
	return 0;
}

/* ---- mapping ---- */

static int map_disks(struct import *im, struct img_err *err)
{
	for (size_t i = 0; i < im->vm.ndisks; i++) {
		struct vm_disk *d = &im->vm.disks[i];
		const char *file = mapped(im->disks, im->ndisks, d->target);
		char path[PATH_MAX];

		if (!file) {
			/* A path in a document that came from elsewhere names nothing here. */
			if (!im->print)
				blocker(im, "disk %s (was %s): no --disk=%s=FILE given", d->target,
					or_none(d->source), d->target);
			continue;
		}
		if (absolute(file, path, sizeof path, err) < 0 || vm_set_source(d, path, err) < 0)
			return -1;
	}
	return 0;
}

static int map_networks(struct import *im, struct img_err *err)
{
	for (size_t i = 0; i < im->vm.nnics; i++) {
		struct vm_nic *n = &im->vm.nics[i];
		const char *to = mapped_mac(im->networks, im->nnetworks, n->mac);
		const char *by_name = mapped(im->networks, im->nnetworks, n->network);

		if (!to)
			to = by_name;
		if (to && vm_set_network(n, to, err) < 0)
			return -1;
	}
	return 0;
}

static void unused_maps(struct import *im)
{
	for (size_t i = 0; i < im->ndisks; i++)
		if (!im->disks[i].used)
			blocker(im, "--disk=%s: the VM has no such disk", im->disks[i].arg);
	for (size_t i = 0; i < im->nnetworks; i++)
		if (!im->networks[i].used)
			blocker(im, "--network=%s: the VM has no such network or network card",
				im->networks[i].arg);
}

/*
 * A guest can read what it boots from, and the document is not to be trusted: a file that only
 * it names must be one that anybody here may read.
 */
static int map_boot_file(struct import *im, const char *what, const char *file, struct img_err *err)
{
	xmlNode *os = vm_child(im->vm.domain, "os");
	char path[PATH_MAX], *named;
	struct stat st;

	if (file) {
		if (!os)
			os = xmlNewChild(im->vm.domain, NULL, (const xmlChar *)"os", NULL);
		if (!os)
			return vm_no_memory(err);
		if (absolute(file, path, sizeof path, err) < 0)
			return -1;
		return vm_set_text(os, what, path, err);
	}
	named = vm_text(vm_child(os, what));
	if (named && !im->print) {
		if (stat(named, &st) < 0)
			blocker(im, "%s %s: %s; --%s=FILE names another", what, named,
				strerror(errno), what);
		else if (!S_ISREG(st.st_mode) || !(st.st_mode & S_IROTH))
			blocker(im,
				"%s %s: not a file that everybody may read; --%s=FILE allows it",
				what, named, what);
	}
	free(named);
	return 0;
}

static int map_all(struct import *im, struct img_err *err)
{
	if (im->name && vm_set_text(im->vm.domain, "name", im->name, err) < 0)
		return -1;
	if (im->new_uuid) {
		xmlNode *uuid = vm_child(im->vm.domain, "uuid");

		if (uuid) {
			xmlUnlinkNode(uuid);
			xmlFreeNode(uuid);
		}
	}
	if (vm_decode(&im->vm, err) < 0 || map_disks(im, err) < 0 || map_networks(im, err) < 0 ||
	    map_boot_file(im, "kernel", im->kernel, err) < 0 ||
	    map_boot_file(im, "initrd", im->initrd, err) < 0)
		return -1;
	unused_maps(im);
	return vm_complete(&im->vm, im->machine, err);
}

/* ---- checks ---- */

/* What the document says of the disk TARGET, or NULL. */
static xmlNode *disk_record(const struct import *im, const char *target)
{
	xmlNode *n = vm_child(vm_child(im->vm.wrapper, "disks"), "disk");

	for (; n; n = n->next) {
		char *s;
		bool same;

		if (n->type != XML_ELEMENT_NODE)
			continue;
		s = vm_attr(n, "target");
		same = s && !strcmp(s, target);
		free(s);
		if (same)
			return n;
	}
	return NULL;
}

/*
 * One of the UUIDs in the record is one of the chain's: copied whole, as an increment, or
 * merged.
 */
static bool shares_layer(const xmlNode *record, const struct img_chain *c)
{
	for (const xmlNode *n = vm_child(record, "layer"); n; n = n->next) {
		char *s = n->type == XML_ELEMENT_NODE ? vm_attr(n, "uuid") : NULL;
		bool found = false;

		for (unsigned l = 0; s && !found && l < img_layers(c); l++) {
			const struct img_info *info = img_layer_info(c, l);
			char uuid[IMG_UUID_STR];

			img_uuid_str(info->uuid, uuid);
			found = info->has_uuid && !strcasecmp(uuid, s);
		}
		free(s);
		if (found)
			return true;
	}
	return false;
}

static bool has_uuids(const xmlNode *record)
{
	for (const xmlNode *n = vm_child(record, "layer"); n; n = n->next) {
		char *s = n->type == XML_ELEMENT_NODE ? vm_attr(n, "uuid") : NULL;

		free(s);
		if (s)
			return true;
	}
	return false;
}

static void check_identity(struct import *im, const struct vm_disk *d, const struct img_chain *c)
{
	const xmlNode *record = disk_record(im, d->target);
	char *size = vm_attr(record, "size");
	char have[32];

	snprintf(have, sizeof have, "%" PRIu64, img_size(c));
	if (size && strcmp(size, have) != 0)
		blocker(im, "disk %s: %s has %s bytes, the VM's disk has %s", d->target, d->source,
			have, size);
	free(size);
	if (record && has_uuids(record) && img_layer_info(c, img_layers(c) - 1)->has_uuid &&
	    !shares_layer(record, c))
		blocker(im, "disk %s: %s is another disk (no UUID of its chain is one of the VM's)",
			d->target, d->source);
}

static void check_disks(struct import *im)
{
	struct img_open open = im->common.open;

	/* Looking must not get in the way of whoever writes the disk. */
	open.unlocked = true;
	for (size_t i = 0; i < im->vm.ndisks; i++) {
		const struct vm_disk *d = &im->vm.disks[i];
		struct img_chain *c = NULL;
		struct img_err err = {0};

		if (!mapped(im->disks, im->ndisks, d->target))
			continue;
		if (img_open(&c, d->source, &open, &err) < 0)
			blocker(im, "disk %s: %s", d->target, err.msg);
		else
			check_identity(im, d, c);
		img_close(c);
	}
}

/* The adapter names one blocker a line. */
static int check_host(struct import *im, const char *xml, size_t len, struct img_err *err)
{
	const char *argv[] = {NULL, "check-host", NULL};
	char *out = NULL, *line, *rest;
	size_t outlen;
	int status;

	if (vm_adapter(im->hypervisor, argv, xml, len, &out, &outlen, &status, err) < 0)
		return -1;
	if (status != 0 && status != IMG_PREFLIGHT) {
		free(out);
		return img_err_set(err, status, "hv-%s check-host failed (exit status %d)",
				   im->hypervisor, status);
	}
	for (line = strtok_r(out, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		blocker(im, "%s", line);
	if (status == IMG_PREFLIGHT && outlen == 0)
		blocker(im, "hv-%s refuses the VM without a reason", im->hypervisor);
	free(out);
	return 0;
}

/* "state" is that of the VM where the document was made, not of what is defined here. */
static void print_result(const struct import *im)
{
	char *state = vm_text(vm_child(im->vm.wrapper, "state"));
	json_t *o = json_pack("{s:i,s:b,s:b,s:s,s:s,s:s?,s:O}", "version", 1, "ok",
			      json_array_size(im->blockers) == 0, "defined",
			      json_array_size(im->blockers) == 0 && !im->check, "name", im->vm.name,
			      "uuid", im->vm.uuid, "state", state, "blockers", im->blockers);

	json_dumpf(o, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(o);
	free(state);
}

/* All that stands in the way, at once. */
static int refuse(const struct import *im)
{
	size_t i;
	json_t *b;

	json_array_foreach(im->blockers, i, b) cli_warn("%s", json_string_value(b));
	if (im->json)
		print_result(im);
	return IMG_PREFLIGHT;
}

/* ---- the end ---- */

static bool flag(const struct import *im, const char *name)
{
	char *s = vm_text(vm_child(im->vm.wrapper, name));
	bool yes = s && !strcmp(s, "true");

	free(s);
	return yes;
}

/* Somebody who starts it from its disks alone would lose what the guest had in memory. */
static void warn_saved(const struct import *im)
{
	char *state = vm_text(vm_child(im->vm.wrapper, "state"));

	if (state && !strcmp(state, "saved") && !im->pending && !im->common.quiet)
		cli_warn("%s was saved: its state is not in the document; bring it along with "
			 "hv-%s save VM - there and restore --later here, before the first start",
			 im->vm.name, im->hypervisor);
	free(state);
}

static int define(struct import *im, const char *xml, size_t len, struct img_err *err)
{
	const char *argv[8] = {NULL, "define"}; /* it says what it has defined */
	char pending[256];
	size_t n = 2;
	int status;

	if (im->pending) {
		snprintf(pending, sizeof pending, "--pending=%s", im->pending);
		argv[n++] = pending;
	}
	if (flag(im, "autostart"))
		argv[n++] = "--autostart";
	if (flag(im, "ha"))
		argv[n++] = "--ha";
	if (im->common.quiet)
		argv[n++] = "--quiet";
	argv[n++] = "-";
	if (vm_adapter(im->hypervisor, argv, xml, len, NULL, NULL, &status, err) < 0)
		return -1;
	if (status)
		return img_err_set(err, status, "hv-%s define failed (exit status %d)",
				   im->hypervisor, status);
	warn_saved(im);
	if (im->json)
		print_result(im);
	return 0;
}

static int print_domain(struct import *im, const char *xml, size_t len, struct img_err *err)
{
	json_t *o;

	if (!im->print_json) {
		fwrite(xml, 1, len, stdout);
		return 0;
	}
	o = vm_json(&im->vm, err);
	if (!o)
		return -1;
	json_dumpf(o, stdout, JSON_COMPACT);
	putchar('\n');
	json_decref(o);
	return 0;
}

static int import(struct import *im, struct img_err *err)
{
	xmlChar *xml = NULL;
	char *buf = NULL;
	size_t len;
	int xmllen, ret = -1;
	json_t *o = NULL;

	if (vm_read_all(0, VM_DOC_MAX, &buf, &len, "stdin", err) < 0 ||
	    vm_parse(&im->vm, buf, len, "stdin", err) < 0 || map_all(im, err) < 0)
		goto out;
	if (!im->print && !im->vm.name) {
		img_err_set(err, IMG_DATA, "stdin: the VM has no name; --name=NAME gives it one");
		goto out;
	}
	xml = vm_domain_text(&im->vm, &xmllen, err);
	o = xml ? vm_json(&im->vm, err) : NULL; /* every field that an adapter reads is sound */
	if (!o)
		goto out;
	if (!im->print || im->check) {
		check_disks(im);
		if (check_host(im, (char *)xml, (size_t)xmllen, err) < 0)
			goto out;
	}
	if (json_array_size(im->blockers))
		ret = refuse(im);
	else if (im->print)
		ret = print_domain(im, (char *)xml, (size_t)xmllen, err);
	else if (!im->check)
		ret = define(im, (char *)xml, (size_t)xmllen, err);
	else
		ret = 0;
	if (ret == 0 && im->check && im->json && !im->print)
		print_result(im);
out:
	json_decref(o);
	xmlFree(xml);
	free(buf);
	return ret;
}

/* ---- options ---- */

static void add_map(struct map *maps, size_t *n, const char *what, const char *arg)
{
	const char *eq = strchr(arg, '=');

	if (!eq || eq == arg || !eq[1])
		cli_usage("--%s=%s: KEY=VALUE is wanted", what, arg);
	if (*n == MAX_MAPS)
		cli_usage("more than %d --%s", MAX_MAPS, what);
	maps[(*n)++].arg = arg;
}

static void set_print(struct import *im, const char *arg)
{
	im->print = true;
	im->print_json = arg && !strcmp(arg, "json");
	if (arg && !im->print_json && strcmp(arg, "xml") != 0)
		cli_usage("--print=%s: xml or json is wanted", arg);
}

static const char *need_word(const char *what, const char *arg)
{
	if (!vm_hypervisor_ok(arg))
		cli_usage("--%s=%s: letters, digits, - and _ are wanted, at most 32", what, arg);
	return arg;
}

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"disk", required_argument, NULL, OPT_DISK},
	{"network", required_argument, NULL, OPT_NETWORK},
	{"kernel", required_argument, NULL, OPT_KERNEL},
	{"initrd", required_argument, NULL, OPT_INITRD},
	{"name", required_argument, NULL, OPT_NAME},
	{"keep-uuid", no_argument, NULL, OPT_KEEP_UUID},
	{"new-uuid", no_argument, NULL, OPT_NEW_UUID},
	{"machine", required_argument, NULL, OPT_MACHINE},
	{"hypervisor", required_argument, NULL, OPT_HYPERVISOR},
	{"pending", required_argument, NULL, OPT_PENDING},
	{"check", no_argument, NULL, 'n'},
	{"dry-run", no_argument, NULL, 'n'},
	{"print", optional_argument, NULL, OPT_PRINT},
	{"json", no_argument, NULL, CLI_JSON},
	{NULL, 0, NULL, 0},
};

static void parse_option(struct import *im, int opt)
{
	switch (opt) {
	case OPT_DISK:
		add_map(im->disks, &im->ndisks, "disk", optarg);
		break;
	case OPT_NETWORK:
		add_map(im->networks, &im->nnetworks, "network", optarg);
		break;
	case OPT_KERNEL:
		im->kernel = optarg;
		break;
	case OPT_INITRD:
		im->initrd = optarg;
		break;
	case OPT_NAME:
		if (!vm_name_ok(optarg))
			cli_usage("--name=%s: 1 to 200 bytes of UTF-8, no slash, no dot in front",
				  optarg);
		im->name = optarg;
		break;
	case OPT_KEEP_UUID:
	case OPT_NEW_UUID:
		im->new_uuid = opt == OPT_NEW_UUID;
		break;
	case OPT_MACHINE:
		im->machine = optarg;
		break;
	case OPT_HYPERVISOR:
		im->hypervisor = need_word("hypervisor", optarg);
		break;
	case OPT_PENDING:
		im->pending = optarg;
		break;
	case OPT_PRINT:
		set_print(im, optarg);
		break;
	case CLI_JSON:
		im->json = true;
		break;
	case 'n':
		im->check = true;
		break;
	default:
		if (!cli_common(&im->common, opt, optarg))
			cli_usage(NULL);
	}
}

int main(int argc, char **argv)
{
	static struct import im;
	struct img_err err = {0};
	int opt, status;

	cli_init(argv, "vm-import", help);
	cli_common_init(&im.common);
	im.hypervisor = "qemu";
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "n", options, NULL)) != -1)
		parse_option(&im, opt);
	if (optind != argc)
		cli_usage("%s: the document is read from stdin", argv[optind]);
	if (im.pending && strlen(im.pending) > 200)
		cli_usage("--pending: a token has at most 200 bytes");
	im.blockers = json_array();
	status = import(&im, &err);
	if (status < 0)
		status = cli_fail(&err);
	vm_free(&im.vm);
	json_decref(im.blockers);
	return cli_exit(status);
}
