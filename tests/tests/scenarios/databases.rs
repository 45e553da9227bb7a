//! Databases and their ready-made clients work through the mesh.

use undermesh_tests::apps::{self, POSTGRES_PORT, REDIS_PORT};
use undermesh_tests::{Family, Result, Shop, Testbed};

use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("redis_answers_through_the_mesh", redis_answers)
        .needs(&["redis-server", "redis-cli"]),
    Scenario::new("postgresql_answers_through_the_mesh", postgresql_answers)
        .needs(&["initdb", "postgres", "psql", "setpriv"]),
];

fn redis_answers(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _redis = apps::redis(&shop.far)?;
    for family in Family::BOTH {
        let server = shop.far.ip(family);
        let redis = |command: &[&str]| {
            apps::redis_cli(&shop.client, server, REDIS_PORT, command)?.success()
        };
        assert_eq!(redis(&["SET", "stock", "42"])?, "OK");
        assert_eq!(redis(&["GET", "stock"])?, "42");
        assert_eq!(redis(&["INCRBY", "stock", "8"])?, "50");
    }
    Ok(())
}

fn postgresql_answers(bed: &Testbed) -> Result<()> {
    let shop = Shop::in_mesh(bed)?;
    let _postgres = apps::postgres(&shop.far)?;
    let psql =
        |family, sql| apps::psql(&shop.client, shop.far.ip(family), POSTGRES_PORT, sql)?.success();
    psql(
        Family::V4,
        "create table stock as select i, i * i as square from generate_series(1, 20000) i",
    )?;
    for family in Family::BOTH {
        assert_eq!(
            psql(family, "select sum(square) from stock")?,
            "2666866670000"
        );
        assert_eq!(
            psql(family, "select host(inet_client_addr())")?,
            shop.client.ip(family).to_string()
        );
        assert_eq!(
            psql(family, "select i from stock order by i")?
                .lines()
                .count(),
            20_000
        );
    }
    Ok(())
}
