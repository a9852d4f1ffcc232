/* A source of frames for whatever DPDK program this is preloaded into: what the device net_null_flows receives becomes one
 * frame of each of so many flows in turn, made from a template in the very process that is measured. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_ethdev.h>
#include <rte_mbuf.h>

#define DEVICE "net_null_flows"
#define PORTS 60000u  /* flows before the next address comes */
#define REMOTES 200u

static uint8_t frame[256];
static uint16_t length;
static uint32_t flows, next;
/* Where the packet of the pods begins, where in it the remote address and port are, and where a tunnel's port is, if any. */
static uint16_t packet, address, port_at, entropy;

static uint16_t number(const char *name)
{
    const char *value = getenv(name);
    return value ? (uint16_t)atoi(value) : 0;
}

static void put(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* The IP header's checksum for another last byte of an address (RFC 1624). */
static void readdress(uint8_t *ip, uint8_t *last, uint8_t value)
{
    uint32_t sum = (uint16_t)~(ip[10] << 8 | ip[11]);
    sum += (uint16_t)~*last;
    sum += value;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    *last = value;
    put(ip + 10, (uint16_t)~sum);
}

static uint16_t fill(uint16_t port, uint16_t queue, struct rte_mbuf *bufs[], uint16_t n, uint16_t most, void *user)
{
    (void)port, (void)queue, (void)most, (void)user;
    for (uint16_t i = 0; i < n; i++) {
        uint8_t *data = rte_pktmbuf_mtod(bufs[i], uint8_t *);
        uint32_t flow = next;
        next = next + 1 == flows ? 0 : next + 1;
        memcpy(data, frame, length);
        bufs[i]->data_len = length;
        bufs[i]->pkt_len = length;
        readdress(data + packet, data + address + 3, (uint8_t)(flow / PORTS % REMOTES + 10));
        put(data + port_at, (uint16_t)(1024 + flow % PORTS));
        if (entropy)
            put(data + entropy, (uint16_t)(49152 + (flow * 7919u & 16383)));
    }
    return n;
}

static int attach(uint16_t port)
{
    char name[RTE_ETH_NAME_MAX_LEN];
    if (rte_eth_dev_get_name_by_port(port, name) != 0 || strcmp(name, DEVICE) != 0)
        return 0;
    int file = open(getenv("FLOWS_FRAME"), O_RDONLY);
    ssize_t got = file < 0 ? -1 : read(file, frame, sizeof frame);
    if (got <= 0)
        return -1;
    close(file);
    length = (uint16_t)got;
    flows = (uint32_t)atol(getenv("FLOWS_COUNT"));
    packet = number("FLOWS_PACKET");
    address = number("FLOWS_ADDRESS");
    port_at = number("FLOWS_PORT");
    entropy = number("FLOWS_ENTROPY");
    return rte_eth_add_rx_callback(port, 0, fill, NULL) ? 0 : -1;
}

/* In the place of DPDK's own. */
int rte_eth_dev_start(uint16_t port)
{
    int (*start)(uint16_t) = (int (*)(uint16_t))dlsym(RTLD_NEXT, "rte_eth_dev_start");
    int started = attach(port);
    return started ? started : start(port);
}
